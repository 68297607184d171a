use plan::{chip, efficiency::Efficiencies, job::*, layout::*, preset, search, step};
fn main() {
    let shape = &preset::find("deepseek-v3").unwrap().shape;
    let cluster = Cluster::new(chip::find("h800").unwrap().clone(), 2048);
    let e = Efficiencies::shipped();
    let job = Job {
        shape,
        cluster: &cluster,
        seq_len: 4096,
        batch_seqs: 15360,
        precision: Precision::Fp8,
        with_mtp: true,
        layout: "tp=1,pp=16,ep=64,zero=1,schedule=dualpipe,recompute=selective"
            .parse()
            .unwrap(),
        software: Software {
            moment_bytes: 2,
            ..Software::default()
        },
        efficiencies: &e,
    };
    let own = step::step(&job).unwrap();
    println!("own {:.3} mem {:?}", own.seconds.0, own.memory);
    let t = std::time::Instant::now();
    let f = search::search(&job, 12).unwrap();
    println!("{:?} timed {}", t.elapsed(), f.timed);
    for c in &f.best {
        println!(
            "{:.3} {} mem {:.1}",
            c.step.seconds.0,
            c.layout,
            c.step.memory.total().0 / 1e9
        );
    }
    let _: Layout = Layout::default();
}
