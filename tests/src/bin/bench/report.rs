//! What was measured: printed as it comes, and written as a page. Invariant: a row says what it was compared with in the
//! same run, and whether its budget is met; nothing is left out because it missed.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use jiff::Timestamp;

/// What a figure should be.
#[derive(Debug, Clone, Copy)]
pub enum Budget {
    AtLeast(f64),
    AtMost(f64),
    /// Nobody has set one: it is shown.
    None,
}

/// One line of the table.
#[derive(Debug)]
pub struct Row {
    /// What was done.
    pub work: String,
    /// What Sluice came to.
    pub ours: String,
    /// What it is compared with, and what that came to.
    pub baseline: String,
    /// What the budget is of: of the pairs, or the one figure there is.
    pub figures: Vec<f64>,
    /// What the figures are counted in: `×` for a ratio.
    pub unit: &'static str,
    pub budget: Budget,
}

impl Row {
    fn figure(&self) -> f64 {
        super::load::median(self.figures.clone())
    }

    fn met(&self) -> &'static str {
        let is_met = match self.budget {
            Budget::AtLeast(least) => self.figure() >= least,
            Budget::AtMost(most) => self.figure() <= most,
            Budget::None => return "–",
        };
        if is_met { "yes" } else { "**no**" }
    }

    fn cells(&self) -> [String; 6] {
        let (least, most) = self.figures.iter().fold((f64::MAX, f64::MIN), |(a, b), f| (a.min(*f), b.max(*f)));
        let unit = self.unit;
        let figure = match self.figures.len() {
            1 => format!("{} {unit}", short(self.figure())),
            _ => format!("{} {unit} ({} to {})", short(self.figure()), short(least), short(most)),
        };
        let budget = match self.budget {
            Budget::AtLeast(least) => format!("≥ {} {unit}", short(least)),
            Budget::AtMost(most) => format!("≤ {} {unit}", short(most)),
            Budget::None => "–".to_owned(),
        };
        [self.work.clone(), self.ours.clone(), self.baseline.clone(), figure, budget, self.met().to_owned()]
    }
}

/// Three digits that matter.
pub fn short(figure: f64) -> String {
    match figure.abs() {
        size if size >= 1_000_000.0 => format!("{:.2} M", figure / 1_000_000.0),
        size if size >= 10_000.0 => format!("{:.0} k", figure / 1000.0),
        size if size >= 1000.0 => format!("{:.1} k", figure / 1000.0),
        size if size >= 100.0 => format!("{figure:.0}"),
        size if size >= 10.0 => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}

/// All rows so far.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
}

impl Report {
    /// Takes a row in and prints it.
    pub fn add(&mut self, row: Row) {
        let [work, ours, baseline, figure, budget, met] = row.cells();
        println!("{work}\n    {ours}, {baseline}: {figure}, budget {budget}, met: {}", met.trim_matches('*'));
        self.rows.push(row);
    }

    /// Writes the page.
    pub fn write(&self, file: &Path, how: &str) -> std::io::Result<()> {
        let mut page = format!("{HEAD}\n{how}\n\n{}\n", machine());
        page.push_str("| work | Sluice | compared with | median (least to most of the pairs) | budget | met |\n|---|---|---|---|---|---|\n");
        for row in &self.rows {
            writeln!(page, "| {} |", row.cells().join(" | ")).expect("text takes text");
        }
        std::fs::write(file, page)
    }
}

const HEAD: &str = "\
# Benchmarks

Written by `make bench` (release build); what the figures are made of, and what was learnt from profiles, is in
[performance.md](performance.md); the figures of a fleet are in [scaling.md](scaling.md). Ratios are what carries over to another machine: each is of a pair that was measured one
after the other in the same run.
";

/// What it ran on.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
        line.split_once(':').map_or(String::new(), |(_, value)| value.trim().to_owned())
    };
    let said = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output();
        output.map_or(String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let memory_kb: f64 = field(&read("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse().unwrap_or_default();
    #[expect(clippy::disallowed_methods, reason = "a benchmark says when it was run")]
    let now = Timestamp::now();
    format!(
        "Measured {} at {} on {cpus} × {}, {:.0} GiB, {}, {}.\n",
        now.strftime("%Y-%m-%d"),
        said("git", &["rev-parse", "--short", "HEAD"]),
        field(&read("/proc/cpuinfo"), "model name"),
        memory_kb / 1024.0 / 1024.0,
        said("uname", &["-sr"]),
        said("rustc", &["--version"]),
    )
}
