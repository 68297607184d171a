//! Memory on a chip against peaks that were measured.

use plan::chip;
use plan::efficiency::Efficiencies;
use plan::job::{Cluster, Job, Precision};
use plan::layout::Layout;
use plan::measured::software;
use plan::memory::memory;
use plan::partition::units;
use plan::preset;
use plan::shape::{Blocks, Shape};
use plan::step::check_layout;

/// Peaks of `max_memory_allocated` on 8 B200, GiB: github.com/MooreThreads/SimuMax
/// docs/b200/b200_release_v1.2_summary.md @1b8ca90b. Model, layers kept, layout, peak.
const PEAKS: [(&str, u64, &str, f64); 12] = [
    ("llama-3-70b", 12, "pp=2", 66.55),
    ("llama-3-70b", 12, "tp=2", 60.68),
    ("llama-3-70b", 12, "tp=4", 39.07),
    ("llama-3-70b", 12, "tp=8", 28.29),
    ("llama-3.1-405b", 4, "pp=2", 87.08),
    ("llama-3.1-405b", 4, "tp=2", 81.59),
    ("llama-3.1-405b", 4, "tp=4", 52.89),
    ("llama-3.1-405b", 4, "tp=8", 38.57),
    ("deepseek-v2", 4, "ep=8", 45.63),
    ("deepseek-v2", 4, "pp=2,ep=4", 44.70),
    ("deepseek-v3-4l", 4, "ep=8", 104.30),
    ("deepseek-v3-4l", 4, "pp=2,ep=4", 114.00),
];

fn truncated(name: &str, layers: u64) -> Shape {
    let mut shape = preset::find(name).unwrap().shape.clone();
    let mut left = layers;
    let mut blocks = Vec::new();
    for block in shape.blocks {
        let count = block.count.min(left);
        left -= count;
        if count > 0 {
            blocks.push(Blocks { count, ..block });
        }
    }
    shape.blocks = blocks;
    shape
}

#[test]
fn peaks_of_b200() {
    let cluster = Cluster::new(chip::find("b200").unwrap().clone(), 8);
    let efficiencies = Efficiencies::shipped();
    let mut worst = 0.0_f64;
    for (name, layers, layout, published) in PEAKS {
        let shape = truncated(name, layers);
        let layout: Layout = layout.parse().unwrap();
        let job = Job {
            shape: &shape,
            cluster: &cluster,
            seq_len: 4096,
            batch_seqs: 8 * layout.dp(8),
            precision: Precision::Bf16,
            with_mtp: false,
            layout,
            software: software("simumax").unwrap(),
            efficiencies: &efficiencies,
        };
        check_layout(&job).unwrap();
        let units = units(&job);
        // Two layers on each stage there; embedding and head are units of their own.
        let stages: Vec<Vec<usize>> = match layout.pp {
            1 => vec![(0..units.len()).collect()],
            _ => {
                let half = 1 + layers as usize / 2;
                vec![(0..half).collect(), (half..units.len()).collect()]
            }
        };
        let memory = memory(&job, &units, &stages);
        let gib = memory.total().0 / f64::from(1 << 30);
        let error = gib / published - 1.0;
        println!(
            "{name:16} {layout} {gib:7.2} of {published:7.2}: {:+.1} %  {memory:?}",
            100.0 * error
        );
        worst = worst.max(error.abs());
    }
    assert!(worst < 0.05, "the worst is {:.1} % away", 100.0 * worst);
}
