//! The model against `golden/`: logits, loss, every gradient and ten optimizer steps, computed by
//! `golden/make.py` in PyTorch from DeepSeek's formulas and checked there against transformers.

use kernels::{AdamW, Backend, Cpu, Isa, Precision, clip_factor};
use model::{
    Activations, Batch, Config, Layout, Loss, Model, MtpLoss, Numerics, Targets, TensorData,
};

mod reference;
use reference::{Golden, batch_of, cases, logits, norm, relative_to_spread};

/// The cases with ten optimizer steps; every architecture's layers learn by the same ops.
const TRAINED_CASES: [&str; 3] = [
    "deepseek_v3_q_lora",
    "deepseek_v3_no_q_lora",
    "deepseek_v3_half_split",
];

/// Weight of the loss of multi-token prediction, where there is one.
const MTP_WEIGHT: f64 = 0.3;

/// Every position that has a next token.
fn next_tokens(batch: &Batch) -> Targets {
    let mut targets = Targets::default();
    for bounds in batch.cu_seqlens.windows(2) {
        for row in bounds[0]..bounds[1] - 1 {
            targets.rows.push(row);
            targets.token_ids.push(batch.token_ids[row as usize + 1]);
        }
    }
    targets
}

/// Each token's successor in its document; the last has none, and any will do.
fn successors(batch: &Batch) -> Vec<u32> {
    let mut next = batch.token_ids[1..].to_vec();
    next.push(0);
    next
}

/// As [`next_tokens`], of the tokens after those.
fn tokens_after_next(batch: &Batch) -> Targets {
    let mut targets = Targets::default();
    for bounds in batch.cu_seqlens.windows(2) {
        for row in bounds[0]..bounds[1].saturating_sub(2).max(bounds[0]) {
            targets.rows.push(row);
            targets.token_ids.push(batch.token_ids[row as usize + 2]);
        }
    }
    targets
}

fn mean_loss(logprobs: &[f32]) -> f64 {
    -logprobs.iter().map(|&l| f64::from(l)).sum::<f64>() / logprobs.len().max(1) as f64
}

/// Mean negative log-likelihood of the next token and of the one after it, and the gradient of
/// their sum.
fn losses_and_gradient(
    model: &Model,
    backend: &dyn Backend,
    batch: &Batch,
) -> ([f64; 2], Vec<f32>) {
    let mut acts = Activations::new(&model.config);
    model.forward(backend, batch, &mut acts, None);
    let (targets, further, next) = (
        next_tokens(batch),
        tokens_after_next(batch),
        successors(batch),
    );
    let mut grads = vec![0.0; model.layout.trainable_len];
    let mut written = [const { Vec::new() }; 4];
    let [logprobs, entropies, mtp_logprobs, mtp_entropies] = &mut written;
    let dlogprobs = |n: usize, weight: f64| vec![(-weight / n as f64) as f32; n];
    let mtp_dlogprobs = dlogprobs(further.rows.len(), MTP_WEIGHT);
    let mtp = (model.config.num_nextn_predict_layers > 0).then(|| MtpLoss {
        next_token_ids: &next,
        targets: &further,
        dlogprobs: &mtp_dlogprobs,
        logprobs: mtp_logprobs,
        entropies: mtp_entropies,
    });
    if mtp.is_some() {
        model.forward_mtp(backend, batch, &next, &mut acts, None);
    }
    let loss = Loss {
        targets: &targets,
        temperature: 1.0,
        dlogprobs: &dlogprobs(targets.rows.len(), 1.0),
        balance_loss_alpha: 0.0,
        logprobs,
        entropies,
        mtp,
    };
    model.backward(backend, batch, &mut acts, loss, &mut grads);
    ([mean_loss(&written[0]), mean_loss(&written[2])], grads)
}

fn loss_and_gradient(model: &Model, backend: &dyn Backend, batch: &Batch) -> (f64, Vec<f32>) {
    let ([loss, _], grads) = losses_and_gradient(model, backend, batch);
    (loss, grads)
}

#[test]
fn f32_logits_are_pytorchs_and_packed_documents_are_the_documents_alone() {
    for case in cases() {
        let golden = Golden::open(&case);
        let documents = golden.documents();
        let mut first: Option<Vec<f32>> = None;
        for isa in Isa::available() {
            for threads in [1, 2, 3] {
                let cpu = Cpu::new(threads, isa);
                let model = golden.model(Numerics::new(Precision::F32), &cpu);
                let packed = logits(&model, &cpu, &batch_of(&documents));
                let mut start = 0;
                for (i, document) in documents.iter().enumerate() {
                    let len = document.len() * model.config.vocab_size;
                    let got = &packed[start..start + len];
                    let alone = logits(&model, &cpu, &Batch::documents(&[document]));
                    assert!(alone == got, "{case} document {i}: packed and alone differ");
                    let worst = relative_to_spread(got, golden.floats(&format!("logits.{i}")));
                    assert!(worst < 1e-4, "{case} document {i}: {worst:e}");
                    start += len;
                }
                assert!(
                    *first.get_or_insert_with(|| packed.clone()) == packed,
                    "{case} {isa}"
                );
            }
        }
    }
}

/// bf16 products, absorbed form, f32 head: the golden file rounds the same operands, in f64. Most
/// rows agree as f32 sums do; where a sum in f32 lands on the other side of a bf16 rounding
/// boundary, the rows after it differ by one rounding, a fraction of what all of them do.
#[test]
fn bf16_logits_differ_from_f32_by_the_rounding_of_operands() {
    let mut compared = 0;
    for case in cases() {
        let golden = Golden::open(&case);
        let kinds = ["bf16_absorbed_f32head_logits", "bf16_f32head_logits"];
        let Some(rounded) = kinds
            .into_iter()
            .find(|name| golden.tensors.contains_key(&format!("{name}.0")))
        else {
            continue;
        };
        compared += 1;
        let documents = golden.documents();
        let mut first: Option<Vec<f32>> = None;
        for isa in Isa::available() {
            let cpu = Cpu::new(2, isa);
            let model = golden.model(Numerics::new(Precision::Bf16), &cpu);
            let got = logits(&model, &cpu, &batch_of(&documents));
            let want = golden.every(rounded);
            let to_bf16 = relative_to_spread(&got, &want);
            let rounding = relative_to_spread(&want, &golden.every("logits"));
            assert!(
                to_bf16 < 0.5 * rounding,
                "{case}: {to_bf16:e} of {rounding:e}"
            );
            let vocab = model.config.vocab_size;
            let rows = got.chunks_exact(vocab).zip(want.chunks_exact(vocab));
            let exact = rows
                .filter(|(a, b)| relative_to_spread(a, b) < 1e-5)
                .count();
            let share = exact as f64 / (got.len() / vocab) as f64;
            assert!(
                share > 0.5,
                "{case}: {share} of the rows are as in the golden file"
            );
            assert!(
                *first.get_or_insert_with(|| got.clone()) == got,
                "{case} {isa}"
            );
        }
    }
    assert!(compared >= 9, "{compared} cases have bf16 logits");
}

#[test]
fn loss_and_every_gradient_are_pytorchs() {
    for case in cases() {
        let golden = Golden::open(&case);
        let batch = batch_of(&golden.documents());
        // How far rounding moves a gradient depends on the weights; it is known for some cases.
        let mut bounds = vec![(Precision::F32, 1e-5, 1e-3)];
        if TRAINED_CASES.contains(&case.as_str()) {
            bounds.push((Precision::Bf16, 2e-2, 6e-2));
        }
        for (precision, loss_bound, gradient_bound) in bounds {
            let mut first: Option<Vec<f32>> = None;
            for isa in Isa::available() {
                let cpu = Cpu::new(3, isa);
                let model = golden.model(Numerics::new(precision), &cpu);
                let ([loss, mtp_loss], grads) = losses_and_gradient(&model, &cpu, &batch);
                if golden.tensors.contains_key("mtp_loss") {
                    let want = f64::from(golden.floats("mtp_loss")[0]);
                    assert!(
                        (mtp_loss - want).abs() < loss_bound * want,
                        "{case}: {mtp_loss}"
                    );
                }
                let want = f64::from(golden.floats("loss")[0]);
                assert!(
                    (loss - want).abs() < loss_bound * want,
                    "{case}: loss {loss} {want}"
                );
                let tensors = model.layout.tensors.iter().filter(|t| t.trainable);
                for tensor in tensors {
                    let name = format!("grad.{}", tensor.name);
                    if model.config.fp8.is_some() && !golden.tensors.contains_key(&name) {
                        // Quantised: the reference has no gradient for its codes.
                        continue;
                    }
                    let want = golden.floats(&name);
                    let got = &grads[tensor.range()];
                    let pairs = got.iter().zip(want);
                    let difference = norm(pairs.map(|(a, b)| f64::from(a - b)));
                    let size = norm(want.iter().map(|&x| f64::from(x)));
                    let error = difference / size.max(1e-6);
                    assert!(
                        error < gradient_bound,
                        "{case} {precision:?} {}: {error:e}",
                        tensor.name
                    );
                }
                assert!(
                    *first.get_or_insert_with(|| grads.clone()) == grads,
                    "{case} {isa}"
                );
            }
        }
    }
}

#[test]
fn the_draft_s_logits_are_the_formula_s() {
    let golden = Golden::open("v3-mtp");
    for isa in Isa::available() {
        let cpu = Cpu::new(2, isa);
        let model = golden.model(Numerics::new(Precision::F32), &cpu);
        let vocab = model.config.vocab_size;
        for (i, document) in golden.documents().iter().enumerate() {
            let batch = Batch::documents(&[document]);
            let mut acts = Activations::for_inference();
            model.forward(&cpu, &batch, &mut acts, None);
            model.forward_mtp(&cpu, &batch, &successors(&batch), &mut acts, None);
            let rows: Vec<u32> = (0..document.len() as u32 - 1).collect();
            let mut got = Vec::new();
            model.mtp_logits(&cpu, &mut acts, &rows, &mut got);
            let want = golden.floats(&format!("mtp_logits.{i}"));
            assert_eq!(got.len(), (document.len() - 1) * vocab);
            let worst = relative_to_spread(&got, want);
            assert!(worst < 1e-4, "document {i}: {worst:e}");
        }
    }
}

#[test]
fn the_balance_loss_and_its_gradient_are_pytorchs() {
    let golden = Golden::open("deepseek_v3_q_lora");
    let cpu = Cpu::new(2, Isa::best());
    let model = golden.model(Numerics::new(Precision::F32), &cpu);
    let batch = batch_of(&golden.documents());
    let mut acts = Activations::new(&model.config);
    model.forward(&cpu, &batch, &mut acts, None);
    let mut grads = vec![0.0; model.layout.trainable_len];
    let (mut logprobs, mut entropies) = (Vec::new(), Vec::new());
    let loss = Loss {
        targets: &Targets::default(),
        temperature: 1.0,
        dlogprobs: &[],
        balance_loss_alpha: 0.01,
        logprobs: &mut logprobs,
        entropies: &mut entropies,
        mtp: None,
    };
    let value = model.backward(&cpu, &batch, &mut acts, loss, &mut grads);
    let want = golden.floats("balance_loss")[0];
    assert!((value - want).abs() < 1e-5 * want, "{value} {want}");
    for tensor in model.layout.tensors.iter().filter(|t| t.trainable) {
        let got = &grads[tensor.range()];
        let zero = vec![0.0; got.len()];
        let name = format!("balance_grad.{}", tensor.name);
        let want = match golden.tensors.get(&name) {
            Some(TensorData::F32(want)) => want,
            _ => &zero,
        };
        let difference = norm(got.iter().zip(want).map(|(a, b)| f64::from(a - b)));
        let size = norm(want.iter().map(|&x| f64::from(x)));
        assert!(
            difference <= 1e-3 * size + 1e-9,
            "{name}: {difference:e} of {size:e}"
        );
    }
}

#[test]
fn ten_optimizer_steps_lose_what_pytorchs_lose() {
    for case in TRAINED_CASES {
        let golden = Golden::open(case);
        let batch = batch_of(&golden.documents());
        let cpu = Cpu::new(2, Isa::best());
        let mut model = golden.model(Numerics::new(Precision::F32), &cpu);
        let layout = Layout::new(&Config::read(&golden.dir).expect("config"));
        let (mut m, mut v) = (
            vec![0.0; layout.trainable_len],
            vec![0.0; layout.trainable_len],
        );
        for (step, &want) in golden.floats("losses").iter().enumerate() {
            let (loss, grads) = loss_and_gradient(&model, &cpu, &batch);
            let want = f64::from(want);
            assert!(
                (loss - want).abs() < 1e-3 * want,
                "{case} step {step}: {loss} {want}"
            );
            let norm = cpu.sum_of_squares(&grads).sqrt();
            model.update(&cpu, |params| {
                for tensor in layout.tensors.iter().filter(|t| t.trainable) {
                    let adamw = AdamW {
                        beta1: 0.9,
                        beta2: 0.95,
                        eps: 1e-8,
                        weight_decay: if tensor.shape.len() >= 2 { 0.1 } else { 0.0 },
                        lr: 1e-2,
                        step: step as u64 + 1,
                        grad_scale: clip_factor(norm, 1.0),
                    };
                    let r = tensor.range();
                    let (m, v) = (&mut m[r.clone()], &mut v[r.clone()]);
                    cpu.adamw(&adamw, &mut params[r.clone()], &grads[r], m, v);
                }
            });
        }
    }
}
