//! Progress on a terminal, drawn by one of the workers.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How often the line is updated.
const PERIOD: Duration = Duration::from_millis(100);

/// A line on the terminal, if there is one.
pub struct Progress {
    bar: Option<ProgressBar>,
    /// Decimal digits to be gained.
    digits: f64,
    shown: Instant,
}

impl Progress {
    /// `wanted`: this worker is the one that draws. Nothing is drawn for a run that ends before
    /// the first period does. The bar has no thread of its own, because a process that forks must
    /// not have one.
    pub fn new(wanted: bool, tolerance: f64) -> Progress {
        let style = ProgressStyle::with_template("{bar:30} {msg} [{elapsed}]");
        let bar = (wanted && stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(1000);
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Progress {
            bar,
            digits: -tolerance.log10(),
            shown: Instant::now(),
        }
    }

    pub fn show(&mut self, iteration: u32, residual: f64) {
        let Some(bar) = &self.bar else { return };
        if self.shown.elapsed() >= PERIOD {
            self.shown = Instant::now();
            let done = (-residual.log10() / self.digits).clamp(0.0, 1.0);
            bar.set_message(format!("iteration {iteration}, residual {residual:.1e}"));
            bar.set_position((1000.0 * done) as u64);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
