fn main() {
    let t = std::time::Instant::now();
    let mut v = plan::validation::compare(|_| {});
    for c in &v {
        println!(
            "{:32} {:+6.1}% {:+6.1}%",
            c.id,
            100.0 * c.error(),
            100.0 * c.error_without_group()
        );
    }
    v.sort_by(|a, b| a.error().abs().total_cmp(&b.error().abs()));
    println!(
        "median {:.3} max {:.3} >15 {}",
        v[v.len() / 2].error().abs(),
        v[v.len() - 1].error().abs(),
        v.iter().filter(|c| c.error().abs() > 0.15).count()
    );
    let inrow: Vec<_> = include_str!("/work/shared/reference/runs.csv")
        .lines()
        .map(|l| l.split(',').next().unwrap())
        .collect();
    let r: Vec<_> = v
        .iter()
        .filter(|c| inrow.contains(&c.id.as_str()))
        .collect();
    println!(
        "runs.csv {} median {:.3} max {:.3} >15 {}",
        r.len(),
        r[r.len() / 2].error().abs(),
        r[r.len() - 1].error().abs(),
        r.iter().filter(|c| c.error().abs() > 0.15).count()
    );
    let mut ratio: Vec<f64> = v.iter().map(|c| 1.0 / (1.0 + c.error())).collect();
    ratio.sort_by(f64::total_cmp);
    println!(
        "5% {:.3} 95% {:.3}",
        ratio[ratio.len() / 20],
        ratio[ratio.len() * 19 / 20]
    );
    let s: Vec<_> = v
        .iter()
        .filter(|c| c.id.starts_with("seqsel"))
        .map(|c| c.error().abs())
        .collect();
    println!(
        "calculon mean {:.4} max {:.4}",
        s.iter().sum::<f64>() / s.len() as f64,
        s.iter().fold(0.0f64, |a, b| a.max(*b))
    );
    println!("{:?}", t.elapsed());
}
