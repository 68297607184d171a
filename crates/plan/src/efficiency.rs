//! What real machines reach of what their data sheets say: a few numbers, shared by all models,
//! chips and runs, each with its source in `data/efficiencies.toml`.

use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

/// One of the shares and times that the time of a step rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Efficiency {
    /// Products on chips since the H100, which lower their clocks under load, of what they would
    /// reach.
    Clocks,
    /// Dense products in 4 bits, of the peak.
    MatmulFp4,
    /// Waves of tiles that a product loses because its last one is not full.
    Tail,
    /// How the tiles of a product grow with a chip's 16-bit peak: the exponent.
    TileGrowth,
    /// Best measured product of a chip that nobody measured, of its peak.
    Unmeasured,
    /// Fused attention forward, causal operations, of the 16-bit peak.
    AttentionForward,
    /// Fused attention backward, causal operations (two and a half times the forward's), of the
    /// 16-bit peak.
    AttentionBackward,
    /// FlashAttention-2 on chips later than the A100, of what is possible there.
    Flash2,
    /// Elementwise work, of the bandwidth of memory.
    Memory,
    /// Links inside a scale-up domain, of their rate per direction.
    ScaleUp,
    /// Links between domains, of their rate per direction.
    ScaleOut,
    /// Seconds on the chip that a kernel takes besides its work.
    Kernel,
    /// Further seconds that a kernel takes where the host starts it and no graph replays it.
    Launch,
    /// Of what could be hidden behind compute, the share that is not.
    Exposed,
}

impl Efficiency {
    pub const ALL: [Efficiency; 14] = [
        Efficiency::Clocks,
        Efficiency::MatmulFp4,
        Efficiency::Tail,
        Efficiency::TileGrowth,
        Efficiency::Unmeasured,
        Efficiency::AttentionForward,
        Efficiency::AttentionBackward,
        Efficiency::Flash2,
        Efficiency::Memory,
        Efficiency::ScaleUp,
        Efficiency::ScaleOut,
        Efficiency::Kernel,
        Efficiency::Launch,
        Efficiency::Exposed,
    ];
}

/// A value for each [`Efficiency`].
#[derive(Clone, Debug, PartialEq)]
pub struct Efficiencies([f64; Efficiency::ALL.len()]);

/// One entry of the data file.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    pub name: Efficiency,
    pub value: f64,
    /// Whether `value` was found by fitting all published steps that name a layout.
    pub fitted: bool,
    /// Where a fit may look: the least and the greatest value that can be.
    pub range: [f64; 2],
    pub source: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    efficiency: Vec<Entry>,
}

/// The entries as shipped, in the order of [`Efficiency::ALL`].
pub fn entries() -> &'static [Entry] {
    static ENTRIES: OnceLock<Vec<Entry>> = OnceLock::new();
    ENTRIES.get_or_init(|| {
        let text = include_str!("../data/efficiencies.toml");
        let file: File = toml::from_str(text).expect("data/efficiencies.toml parses");
        let mut entries = file.efficiency;
        entries.sort_by_key(|entry| entry.name);
        let names: Vec<_> = entries.iter().map(|entry| entry.name).collect();
        assert_eq!(
            names,
            Efficiency::ALL,
            "data/efficiencies.toml has each once"
        );
        entries
    })
}

impl Efficiencies {
    /// Those shipped with the program.
    pub fn shipped() -> Efficiencies {
        let mut values = [0.0; Efficiency::ALL.len()];
        for (value, entry) in values.iter_mut().zip(entries()) {
            *value = entry.value;
        }
        Efficiencies(values)
    }

    pub fn get(&self, name: Efficiency) -> f64 {
        self.0[name as usize]
    }

    /// The same with one value changed.
    pub fn with(&self, name: Efficiency, value: f64) -> Efficiencies {
        let mut changed = self.clone();
        changed.0[name as usize] = value;
        changed
    }
}
