//! The terminal: lines of at most 100 columns, coloured only where a person looks at them.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

/// How wide a line may be.
pub const WIDTH: usize = 100;

/// Standard output, and the clock of the act.
#[derive(Debug)]
pub struct Out {
    color: bool,
    act_began: Mutex<Instant>,
}

/// How text looks.
#[derive(Clone, Copy, Debug)]
pub enum Look {
    Plain,
    Bold,
    Dim,
    Good,
    Bad,
    Event,
}

impl Out {
    pub fn new() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let color = wanted && std::io::stdout().is_terminal();
        Self {
            color,
            act_began: Mutex::new(Instant::now()),
        }
    }

    /// A line. That its reader is gone is no reason to leave processes behind: errors are
    /// ignored.
    pub fn line(&self, look: Look, text: &str) {
        let mut out = std::io::stdout().lock();
        let _ = match self.code(look) {
            Some(code) => writeln!(out, "\x1b[{code}m{text}\x1b[0m"),
            None => writeln!(out, "{text}"),
        };
        let _ = out.flush();
    }

    pub fn plain(&self, text: &str) {
        self.line(Look::Plain, text);
    }

    /// A heading with a rule to the right margin; the act's clock starts.
    pub fn act(&self, title: &str) {
        *self
            .act_began
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.plain("");
        self.heading(title);
    }

    pub fn heading(&self, title: &str) {
        let rule = "─".repeat(WIDTH.saturating_sub(title.chars().count() + 4));
        self.line(Look::Bold, &format!("── {title} {rule}"));
    }

    /// Text of any length, broken after a comma or a space if there is one, each line after
    /// `indent` columns.
    pub fn wrapped(&self, indent: usize, text: &str) {
        let width = WIDTH.saturating_sub(indent);
        let mut line = String::new();
        for piece in text.trim().split_inclusive([',', ' ']) {
            if !line.is_empty() && line.chars().count() + piece.chars().count() > width {
                self.plain(format!("{:indent$}{line}", "").trim_end());
                line.clear();
            }
            line.push_str(piece);
        }
        self.plain(format!("{:indent$}{line}", "").trim_end());
    }

    /// Something that happened, with the act's time.
    pub fn event(&self, text: &str) {
        let seconds = self
            .act_began
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .elapsed()
            .as_secs_f64();
        self.line(Look::Event, &format!("{seconds:>6.1} s  » {text}"));
    }

    /// An expectation, and whether it was met.
    pub fn verdict(&self, met: bool, text: &str) {
        let (look, mark) = if met {
            (Look::Good, "✓")
        } else {
            (Look::Bad, "✗")
        };
        match self.code(look) {
            Some(code) => self.plain(&format!("  \x1b[{code}m{mark}\x1b[0m {text}")),
            None => self.plain(&format!("  {mark} {text}")),
        }
    }

    const fn code(&self, look: Look) -> Option<&'static str> {
        match (self.color, look) {
            (false, _) | (_, Look::Plain) => None,
            (_, Look::Bold) => Some("1"),
            (_, Look::Dim) => Some("2"),
            (_, Look::Good) => Some("32"),
            (_, Look::Bad) => Some("31;1"),
            (_, Look::Event) => Some("33"),
        }
    }
}
