//! The live view: who takes part, what is held and waited for, how the memory changes.
//!
//! Allocations are not counted anywhere, so that they stay cheap. What is shown is how much the
//! allocated bytes of each span have changed since the last look: if they have increased, at least
//! that much was allocated, and if they have decreased, at least that much was freed.

use std::collections::BTreeMap;
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph};
use serde_json::{Value, json};
use shmkit::Stats;
use shmkit::inspect::{LockReport, Observer, Participant, ProcessReport, Span};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use crate::failure::{Failure, Outcome};
use crate::report::Column::{Number, Text};
use crate::report::{bytes, locks, row, stats_json, table};

/// What one look has seen.
struct Look {
    at: Instant,
    stats: Stats,
    participants: Vec<Participant>,
    /// By address.
    spans: BTreeMap<usize, Span>,
    processes: Vec<ProcessReport>,
    locks: Vec<LockReport>,
}

impl Look {
    fn take(observer: &Observer) -> Self {
        Look {
            at: Instant::now(),
            stats: observer.stats(),
            participants: observer.participants(),
            spans: observer.spans().into_iter().map(|s| (s.start, s)).collect(),
            processes: observer.processes(),
            locks: observer.locks(),
        }
    }
}

/// Bytes per second.
struct Rates {
    allocated: f64,
    freed: f64,
}

/// Two looks, and what has changed between them.
pub struct View {
    before: Look,
    now: Look,
}

pub fn look_twice(observer: &Observer, apart: Duration) -> View {
    let before = Look::take(observer);
    std::thread::sleep(apart);
    let now = Look::take(observer);
    View { before, now }
}

impl View {
    fn rate(&self, now: usize, before: usize) -> f64 {
        let seconds = (self.now.at - self.before.at).as_secs_f64().max(1e-9);
        (now as f64 - before as f64) / seconds
    }

    /// Bytes per second that were allocated, and that were freed, in the spans that a participant
    /// has now: at least this many.
    fn rates(&self, participant: &Participant) -> Rates {
        let of_it = |span: &&Span| span.slot == participant.slot;
        let (mut allocated, mut freed) = (0, 0);
        for span in self.now.spans.values().filter(of_it) {
            let before = self.before.spans.get(&span.start);
            let before = before.map_or(0, |span| span.allocated);
            allocated += span.allocated.saturating_sub(before);
            freed += before.saturating_sub(span.allocated);
        }
        // A span that it has given back was empty by then.
        let gone = |span: &&Span| !self.now.spans.contains_key(&span.start);
        let given_back = self.before.spans.values().filter(of_it).filter(gone);
        freed += given_back.map(|span| span.allocated).sum::<usize>();
        Rates {
            allocated: self.rate(allocated, 0),
            freed: self.rate(freed, 0),
        }
    }

    fn summary(&self) -> String {
        let (stats, before) = (&self.now.stats, &self.before.stats);
        let waiting: usize = self.now.locks.iter().map(LockReport::waiting).sum();
        format!(
            "{} threads of {} processes, {waiting} waiting; {} allocated ({}/s) of {}; {} recoveries",
            stats.threads,
            stats.processes,
            bytes(stats.allocated as u64),
            signed(self.rate(stats.allocated, before.allocated)),
            bytes(stats.total as u64),
            stats.recoveries,
        )
    }

    fn participants(&self) -> String {
        let mut rows = vec![row([
            &"PROCESS",
            &"SLOT",
            &"STATE",
            &"COMMAND",
            &"SPANS",
            &"ALLOCATED",
            &"NEW/S",
            &"FREED/S",
        ])];
        for participant in &self.now.participants {
            let of_it = |p: &&ProcessReport| p.process == participant.process;
            let process = self.now.processes.iter().find(of_it);
            let state = match process {
                _ if participant.slot == 0 => "nobody",
                Some(process) if process.alive => "alive",
                _ => "ended",
            };
            let rates = self.rates(participant);
            rows.push(row([
                &participant.process,
                &participant.slot,
                &state,
                &process.and_then(|p| p.command.as_deref()).unwrap_or(""),
                &participant.spans,
                &bytes(participant.allocated as u64),
                &bytes(rates.allocated as u64),
                &bytes(rates.freed as u64),
            ]));
        }
        let kinds = [Number, Number, Text, Text, Number, Number, Number, Number];
        table(kinds, &rows)
    }

    pub fn text(&self) -> String {
        let held = locks(&self.now.locks);
        format!("{}\n\n{}\n{held}", self.summary(), self.participants())
    }

    pub fn json(&self) -> Value {
        let with_rates = |participant: &Participant| {
            let rates = self.rates(participant);
            let mut data = json!(participant);
            data["allocated_per_second"] = json!(rates.allocated);
            data["freed_per_second"] = json!(rates.freed);
            data["growth_per_second"] = json!(rates.allocated - rates.freed);
            data
        };
        let participants: Vec<Value> = self.now.participants.iter().map(with_rates).collect();
        let (now, before) = (self.now.stats.allocated, self.before.stats.allocated);
        json!({
            "seconds": (self.now.at - self.before.at).as_secs_f64(),
            "memory": stats_json(&self.now.stats),
            "growth_per_second": self.rate(now, before),
            "participants": participants,
            "processes": self.now.processes,
            "locks": self.now.locks,
        })
    }
}

fn signed(rate: f64) -> String {
    let sign = if rate < 0.0 { "-" } else { "+" };
    format!("{sign}{}", bytes(rate.abs() as u64))
}

/// Held while something is done to the terminal, and kept for good by the thread that restores it.
static SCREEN: Mutex<()> = Mutex::new(());

/// Shows the pool on the terminal until somebody presses q, Escape or Ctrl-C, or a signal ends it.
pub fn watch(observer: &Observer, name: &str, interval: Duration) -> Outcome {
    give_back_when_signalled()?;
    let screen = SCREEN.lock();
    let mut terminal = ratatui::try_init().map_err(Failure::from)?;
    drop(screen);
    let outcome = show(&mut terminal, observer, name, interval);
    let _screen = SCREEN.lock();
    ratatui::restore();
    outcome.map_err(Failure::from)
}

/// From here on, a signal that ends the process first restores the terminal. If the terminal
/// accepts nothing, because nobody reads what is drawn, this is waited for only for a limited time.
fn give_back_when_signalled() -> Outcome {
    /// How long restoring the terminal may take.
    const LIMIT: Duration = Duration::from_secs(1);
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM])?;
    std::thread::spawn(move || {
        let Some(signal) = signals.forever().next() else {
            return;
        };
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            std::mem::forget(SCREEN.lock());
            // After a hangup there is no terminal.
            let _ = ratatui::try_restore();
            let _ = tell.send(());
        });
        let _ = told.recv_timeout(LIMIT);
        let _ = emulate_default_handler(signal);
    });
    Ok(())
}

fn show(
    terminal: &mut ratatui::DefaultTerminal,
    observer: &Observer,
    name: &str,
    interval: Duration,
) -> std::io::Result<()> {
    let mut view = look_twice(observer, Duration::from_millis(50));
    loop {
        let screen = SCREEN.lock();
        terminal.draw(|frame| {
            let [head, participants, locked] = Layout::vertical([
                Constraint::Length(2),
                Constraint::Fill(1),
                Constraint::Fill(1),
            ])
            .areas(frame.area());
            let bold = Style::new().add_modifier(Modifier::BOLD);
            let title = Line::styled(format!("{name}  (q ends)"), bold);
            frame.render_widget(Paragraph::new(vec![title, view.summary().into()]), head);
            let part = |title: &'static str, text: String| {
                Paragraph::new(text).block(Block::bordered().title(title))
            };
            frame.render_widget(part("participants", view.participants()), participants);
            frame.render_widget(part("held and waited for", locks(&view.now.locks)), locked);
        })?;
        drop(screen);
        let next = view.now.at + interval;
        while let Some(left) = next.checked_duration_since(Instant::now()) {
            if !event::poll(left)? {
                break;
            }
            match event::read()? {
                Event::Key(key) if key.kind == KeyEventKind::Press => {
                    let control = key.modifiers.contains(KeyModifiers::CONTROL);
                    match key.code {
                        KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                        KeyCode::Char('c') if control => return Ok(()),
                        _ => {}
                    }
                }
                Event::Resize(..) => break,
                _ => {}
            }
        }
        view = View {
            before: view.now,
            now: Look::take(observer),
        };
    }
}
