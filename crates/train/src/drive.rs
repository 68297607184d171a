//! A stage from where it stands to its end, with its metrics and checkpoints.

use kernels::Backend;

use crate::error::Error;
use crate::progress::Stage;
use crate::run_dir::RunDir;

/// What whoever watches a run wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    Continue,
    /// Save now, at the end of this step, and return.
    Stop,
}

/// Steps to the end. Writes each step's metrics, saves at the start, every
/// `checkpoint.every_steps`, when asked to stop, and at the end. `watch` hears of every step.
/// True: the stage is complete; false: it was stopped.
///
/// # Errors
/// Those of the steps and of the disk; the checkpoints written before them are whole.
pub fn drive<S: Stage>(
    stage: &mut S,
    run: &mut RunDir,
    backend: &dyn Backend,
    watch: &mut dyn FnMut(&S, &S::Metrics) -> Control,
) -> Result<bool, Error> {
    if stage.progress().step == 0 {
        run.save(stage)?;
    }
    while stage.progress().step < stage.steps() {
        let metrics = stage.step(backend)?;
        run.log(&metrics, stage.samples())?;
        let step = stage.progress().step;
        let stop = watch(stage, &metrics) == Control::Stop;
        if run.is_due(step) || stop || step == stage.steps() {
            run.save(stage)?;
        }
        if stop {
            return Ok(step == stage.steps());
        }
    }
    Ok(true)
}
