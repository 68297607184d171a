//! Fits the efficiencies and the slowdowns to all published steps, and prints what
//! `data/efficiencies.toml` and `data/software.toml` should say.

use plan::efficiency::Efficiencies;
use plan::fit::{fit, fitted, residuals, slowdowns};
use plan::measured::{Measured, all};

fn main() {
    let rows: Vec<&Measured> = all().iter().collect();
    let found = fit(&rows, &Efficiencies::shipped(), 60);
    println!("# data/efficiencies.toml");
    for entry in fitted() {
        println!("{:?} = {:.4e}", entry.name, found.get(entry.name));
    }
    println!("# data/software.toml");
    for (software, slowdown) in slowdowns(&rows, &residuals(&rows, &found)) {
        println!("[{software}] slowdown = {:.3}", slowdown.exp());
    }
}
