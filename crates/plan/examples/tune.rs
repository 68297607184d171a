use plan::efficiency::*;
use plan::{fit, measured};
fn main() {
    let rows: Vec<_> = measured::all().iter().collect();
    let e = Efficiencies::shipped();
    let e = if std::env::args().nth(1).as_deref() == Some("fit") {
        {
            let t = std::time::Instant::now();
            let f = fit::fit(&rows, &e, 40);
            println!("fit {:?}", t.elapsed());
            f
        }
    } else {
        e
    };
    let res = fit::residuals(&rows, &e);
    let sl = fit::slowdowns(&rows, &res);
    let cen = fit::centred(&rows, &res);
    for (k, v) in &sl {
        println!("{k} x{:.3}", v.exp());
    }
    let mut i = 0;
    for x in Efficiency::ALL {
        println!("{:?} {}", x, e.get(x));
    }
    let mut all = vec![];
    for r in &rows {
        let s = r.predict(&e).unwrap_or_else(|x| panic!("{} {x}", r.row.id));
        let err = cen[i].exp() - 1.0;
        i += 1;
        all.push(err.abs());
        let t = s.seconds.0;
        print!(
            "{:32} {:9.3} {:9.3} {:+6.1}% mem {:5.1} |",
            r.row.id,
            r.row.step_seconds,
            t,
            err * 100.0,
            s.memory.total().0 / 1e9
        );
        for (n, v) in s.parts.named() {
            print!(" {} {:.1}", n.split(' ').next().unwrap(), 100.0 * v.0 / t);
        }
        println!();
    }
    all.sort_by(f64::total_cmp);
    println!(
        "median {:.3} max {:.3} over15 {}",
        all[all.len() / 2],
        all[all.len() - 1],
        all.iter().filter(|x| **x > 0.15).count()
    );
}
