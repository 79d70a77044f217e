//! What `top` looks like: a frame of lines, and what keys do to it.
//!
//! In: rows, and keys. Out: lines that fit the terminal. Promise: no I/O, so that all of it is
//! tested; names come from outside and cannot act on the terminal.

use std::cmp::Ordering;
use std::time::Duration;

use super::figures::{By, Filter, Row, Scrape, rows};
use crate::table::{Align, pad, seconds, shown, width};

/// What a key means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    Char(char),
    Up,
    Down,
    Enter,
    Escape,
    /// Ctrl-C.
    Interrupt,
}

/// What follows a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    Show,
    Quit,
}

/// What rows are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Rate,
    Success,
    P50,
    P95,
    P99,
    Busy,
    Name,
}

const SORTS: [(Sort, char, &str); 7] = [
    (Sort::Rate, 'r', "RATE/s"),
    (Sort::Success, 's', "SUCCESS"),
    (Sort::P50, '5', "P50"),
    (Sort::P95, '6', "P95"),
    (Sort::P99, '9', "P99"),
    (Sort::Busy, 'f', "FLIGHT"),
    (Sort::Name, 'n', "NAME"),
];

const HELP: [&str; 14] = [
    "1 2 3 4    by route, cluster, peer, listener; Tab the next of them",
    "up down    choose a row (k, j)",
    "Enter      what is behind the row: of a route its clusters, of these the peers",
    "Esc        back",
    "r s f n    sort by rate, success, requests in flight, name; the same key again: the other way round",
    "5 6 9      sort by p50, p95, p99",
    "Space      hold, and go on",
    "? q        this help, quit (Ctrl-C)",
    "",
    "Rate, success and quantiles are those since the last look. A request failed when its",
    "answer was 5xx or none, or a gRPC status that says that the server failed. Latencies are",
    "not kept by peer. FLIGHT is requests being answered, by listener, or by cluster where",
    "`adaptiveConcurrency` counts them: beside it how many may be. CONNS are open connections:",
    "of clients by listener, beside it how many may be; to endpoints by cluster.",
];

/// What is shown, and how.
pub(crate) struct Screen {
    place: String,
    by: By,
    filter: Filter,
    /// Views to go back to.
    back: Vec<(By, Filter)>,
    sort: Sort,
    reverse: bool,
    chosen: usize,
    help: bool,
    pub(crate) hold: bool,
    /// The rows as they were shown last.
    rows: Vec<Row>,
    summary: String,
    problem: Option<String>,
    pub(crate) colour: bool,
}

impl Screen {
    pub(crate) fn new(place: String, by: By, colour: bool) -> Self {
        Self {
            place,
            by,
            filter: Filter::new(),
            back: Vec::new(),
            sort: Sort::Rate,
            reverse: false,
            chosen: 0,
            help: false,
            hold: false,
            rows: Vec::new(),
            summary: String::new(),
            problem: None,
            colour,
        }
    }

    /// Takes a look.
    pub(crate) fn take(&mut self, before: &Scrape, now: &Scrape, elapsed: Duration) {
        self.problem = None;
        self.rows = rows(before, now, elapsed, self.by, &self.filter);
        let (sort, reverse) = (self.sort, self.reverse);
        self.rows.sort_by(|a, b| {
            let order = compare(sort, a, b);
            if reverse { order.reverse() } else { order }.then_with(|| a.name.cmp(&b.name))
        });
        self.chosen = self.chosen.min(self.rows.len().saturating_sub(1));
        let (busy, connections) = now.open();
        let buffers = now.buffers().map(|share| format!("  buffers {:.0}%", share * 100.0)).unwrap_or_default();
        self.summary = format!("in flight {busy:.0}  connections {connections:.0}{buffers}");
    }

    /// A look failed.
    pub(crate) fn fail(&mut self, problem: String) {
        self.problem = Some(problem);
    }

    /// Does what a key asks for.
    pub(crate) fn press(&mut self, key: Key) -> After {
        if matches!(key, Key::Char('q') | Key::Interrupt) {
            return After::Quit;
        }
        if self.help {
            self.help = false;
            return After::Show;
        }
        match key {
            Key::Char('?' | 'h') => self.help = true,
            Key::Char(' ') => self.hold = !self.hold,
            Key::Char(digit @ '1'..='4') => self.view(By::ALL[digit as usize - '1' as usize]),
            Key::Char('\t') => self.view(By::ALL[(self.by as usize + 1) % By::ALL.len()]),
            Key::Char(letter) if let Some((sort, ..)) = SORTS.iter().find(|(_, key, _)| *key == letter) => {
                self.reverse = self.sort == *sort && !self.reverse;
                self.sort = *sort;
            }
            Key::Up | Key::Char('k') => self.chosen = self.chosen.saturating_sub(1),
            Key::Down | Key::Char('j') => self.chosen = (self.chosen + 1).min(self.rows.len().saturating_sub(1)),
            Key::Enter => self.enter(),
            Key::Escape => {
                if let Some((by, filter)) = self.back.pop() {
                    (self.by, self.filter, self.chosen) = (by, filter, 0);
                }
            }
            Key::Char(_) | Key::Interrupt => {}
        }
        After::Show
    }

    fn view(&mut self, by: By) {
        (self.by, self.chosen) = (by, 0);
        self.filter.clear();
        self.back.clear();
    }

    /// Shows what is behind the chosen row.
    fn enter(&mut self) {
        let Some(row) = self.rows.get(self.chosen) else { return };
        let next = match self.by {
            By::Listener => By::Route,
            By::Route => By::Cluster,
            By::Cluster => By::Peer,
            By::Peer => By::Route,
        };
        // Around once at most.
        if self.filter.iter().any(|(by, _)| *by == self.by) || self.filter.len() == By::ALL.len() - 1 {
            return;
        }
        self.back.push((self.by, self.filter.clone()));
        self.filter.push((self.by, row.name.clone()));
        (self.by, self.chosen) = (next, 0);
    }

    /// The lines for a terminal of this size.
    pub(crate) fn frame(&self, columns: usize, lines: usize) -> Vec<String> {
        let style = |code: &'static str| if self.colour { code } else { "" };
        let (bold, dim, red, turned, end) =
            (style("\x1b[1m"), style("\x1b[2m"), style("\x1b[31m"), style("\x1b[7m"), style("\x1b[0m"));
        let mut frame = Vec::new();
        let held = if self.hold { "  (held)" } else { "" };
        frame.push(format!("{bold}{}{end}", cut(&format!("outrigger top  {}{held}", self.place), columns)));
        match &self.problem {
            Some(problem) => frame.push(format!("{red}{}{end}", cut(&shown(problem), columns))),
            None => frame.push(cut(&self.summary, columns)),
        }
        if self.help {
            frame.push(String::new());
            frame.extend(HELP.iter().map(|line| cut(line, columns)));
            frame.truncate(lines);
            return frame;
        }
        let trail: String =
            self.filter.iter().map(|(by, name)| format!("{}={}  ", by.name(), shown(&named(name)))).collect();
        frame.push(format!("{dim}{}{end}", cut(&trail, columns)));
        let [head, body @ ..] = &*self.table(columns) else { return frame };
        frame.push(format!("{bold}{head}{end}"));
        let room = lines.saturating_sub(frame.len() + 1);
        // The chosen row is always to be seen.
        let first = (self.chosen + 1).saturating_sub(room);
        for (index, line) in body.iter().enumerate().skip(first).take(room) {
            if index == self.chosen {
                frame.push(format!("{turned}{line}{}{end}", " ".repeat(columns.saturating_sub(width(line)))));
            } else if self.rows[index].success.is_some_and(|success| success < 0.99) {
                frame.push(format!("{red}{line}{end}"));
            } else {
                frame.push(line.clone());
            }
        }
        if body.is_empty() {
            frame.push("no request yet".to_owned());
        }
        frame.resize(lines.saturating_sub(1).max(frame.len()), String::new());
        let keys = "1-4 view  Enter/Esc in, out  r s 5 6 9 f n sort  Space hold  ? help  q quit";
        frame.push(format!("{dim}{}{end}", cut(keys, columns)));
        frame.truncate(lines.max(1));
        frame
    }

    /// The table's head and its rows.
    pub(crate) fn table(&self, columns: usize) -> Vec<String> {
        const WIDTHS: [usize; 7] = [9, 8, 6, 6, 6, 7, 9];
        let rest: usize = WIDTHS.iter().map(|width| width + 1).sum();
        let longest = self.rows.iter().map(|row| width(&shown(&named(&row.name)))).max().unwrap_or_default();
        let name_width = columns.saturating_sub(rest).clamp(8, 120).min(longest.max(12));
        let line = |name: &str, cells: [String; 7]| {
            let mut line = String::new();
            pad(&mut line, &shorten(name, name_width), name_width, Align::Left);
            for (cell, width) in cells.iter().zip(WIDTHS) {
                line.push(' ');
                pad(&mut line, cell, width, Align::Right);
            }
            cut(&line, columns)
        };
        let titles = [Sort::Rate, Sort::Success, Sort::P50, Sort::P95, Sort::P99, Sort::Busy].map(|sort| {
            let title = SORTS.iter().find(|(one, ..)| *one == sort).map_or("", |(_, _, title)| *title);
            let mark = if self.sort != sort {
                ""
            } else if self.reverse {
                "^"
            } else {
                "v"
            };
            format!("{title}{mark}")
        });
        let [rate, success, p50, p95, p99, busy] = titles;
        let head = line(&self.by.name().to_uppercase(), [rate, success, p50, p95, p99, busy, "CONNS".to_owned()]);
        let row = |row: &Row| {
            let time = |time: Option<f64>| time.map_or("-".to_owned(), seconds);
            let [p50, p95, p99] = row.quantiles;
            line(
                &shown(&named(&row.name)),
                [
                    format!("{:.1}", row.rate),
                    row.success.map_or("-".to_owned(), |share| format!("{:.2}%", share * 100.0)),
                    time(p50),
                    time(p95),
                    time(p99),
                    of(row.busy, row.most),
                    of(row.connections, row.most_connections),
                ],
            )
        };
        std::iter::once(head).chain(self.rows.iter().map(row)).collect()
    }

    /// What is shown, for programs.
    pub(crate) fn json(&self, elapsed: Duration, now: &Scrape) -> serde_json::Value {
        let (busy, connections) = now.open();
        let row = |row: &Row| {
            let [p50, p95, p99] = row.quantiles;
            serde_json::json!({
                "name": row.name, "rate": row.rate, "success": row.success, "p50": p50, "p95": p95, "p99": p99,
                "requests": row.requests, "failed": row.failed, "inFlight": row.busy, "inFlightLimit": row.most,
                "connections": row.connections, "connectionsLimit": row.most_connections,
            })
        };
        serde_json::json!({
            "by": self.by.name(), "seconds": elapsed.as_secs_f64(), "inFlight": busy, "connections": connections,
            "buffersInUse": now.buffers(), "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
        })
    }

    /// The line above the table.
    pub(crate) fn summary(&self) -> &str {
        &self.summary
    }
}

/// What is worth looking at comes first: much, slow, failing.
fn compare(sort: Sort, a: &Row, b: &Row) -> Ordering {
    let most = |a: Option<f64>, b: Option<f64>| b.unwrap_or(-1.0).total_cmp(&a.unwrap_or(-1.0));
    match sort {
        Sort::Rate => most(Some(a.rate), Some(b.rate)),
        Sort::Success => a.success.unwrap_or(2.0).total_cmp(&b.success.unwrap_or(2.0)),
        Sort::P50 => most(a.quantiles[0], b.quantiles[0]),
        Sort::P95 => most(a.quantiles[1], b.quantiles[1]),
        Sort::P99 => most(a.quantiles[2], b.quantiles[2]),
        Sort::Busy => most(a.busy.or(a.connections), b.busy.or(b.connections)),
        Sort::Name => a.name.cmp(&b.name),
    }
}

/// How many there are, and may be.
fn of(count: Option<f64>, most: Option<f64>) -> String {
    match (count, most) {
        (Some(count), Some(most)) => format!("{count:.0}/{most:.0}"),
        (Some(count), None) => format!("{count:.0}"),
        (None, _) => "-".to_owned(),
    }
}

/// A name as people know it; requests without a route or peer have none.
fn named(name: &str) -> String {
    if name.is_empty() { "(none)".to_owned() } else { name.to_owned() }
}

/// The end of a name tells more than its beginning.
fn shorten(name: &str, most: usize) -> String {
    let count = width(name);
    if count <= most {
        return name.to_owned();
    }
    let rest: String = name.chars().skip(count + 1 - most).collect();
    format!("…{rest}")
}

fn cut(line: &str, columns: usize) -> String {
    line.chars().take(columns).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scrape(counts: &[(&str, &str, &str, u64)]) -> Scrape {
        let mut text = String::new();
        for (route, cluster, code, count) in counts {
            text.push_str(&format!(
                "outrigger_http_requests_total{{listener=\"in\",route=\"{route}\",cluster=\"{cluster}\",code=\"{code}\",peer=\"\"}} {count}\n"
            ));
        }
        Scrape::parse(text.as_bytes()).unwrap()
    }

    fn screen() -> (Screen, Scrape, Scrape) {
        let now = scrape(&[
            ("a", "x", "200", 10),
            ("b", "x", "200", 20),
            ("b", "y", "503", 10),
            ("\u{1b}[2J", "x", "200", 1),
        ]);
        (Screen::new("127.0.0.1:15000".to_owned(), By::Route, false), Scrape::default(), now)
    }

    fn names(screen: &Screen) -> Vec<&str> {
        screen.rows.iter().map(|row| row.name.as_str()).collect()
    }

    #[test]
    fn keys_switch_sort_and_drill_down() {
        let (mut screen, before, now) = screen();
        let press = |screen: &mut Screen, keys: &[Key]| {
            for key in keys {
                assert_eq!(screen.press(*key), After::Show, "{key:?}");
                screen.take(&before, &now, Duration::from_secs(1));
            }
        };
        press(&mut screen, &[Key::Char('1')]);
        assert_eq!(names(&screen), ["b", "a", "\u{1b}[2J"], "by rate");
        press(&mut screen, &[Key::Char('n')]);
        assert_eq!(names(&screen), ["\u{1b}[2J", "a", "b"]);
        press(&mut screen, &[Key::Char('n')]);
        assert_eq!(names(&screen), ["b", "a", "\u{1b}[2J"], "the other way round");
        press(&mut screen, &[Key::Char('s'), Key::Enter]);
        assert_eq!((screen.by, names(&screen)), (By::Cluster, vec!["y", "x"]), "of b, the failing one first");
        assert!(screen.frame(80, 24)[2].contains("route=b"));
        press(&mut screen, &[Key::Down, Key::Enter]);
        assert_eq!((screen.by, names(&screen), screen.rows[0].requests), (By::Peer, vec![""], 20));
        press(&mut screen, &[Key::Escape, Key::Escape, Key::Escape]);
        assert_eq!((screen.by, screen.filter.len()), (By::Route, 0));
        press(&mut screen, &[Key::Char('\t'), Key::Char('\t'), Key::Char('\t'), Key::Char('\t'), Key::Char('2')]);
        assert_eq!((screen.by, names(&screen)), (By::Cluster, vec!["y", "x"]));
        press(&mut screen, &[Key::Char('?')]);
        assert!(screen.frame(80, 24).iter().any(|line| line.contains("sort by rate")));
        press(&mut screen, &[Key::Char('x'), Key::Char(' ')]);
        assert!(!screen.help && screen.hold);
        assert_eq!(screen.press(Key::Char('q')), After::Quit);
        assert_eq!(screen.press(Key::Interrupt), After::Quit);
    }

    #[test]
    fn a_frame_fits_its_terminal() {
        let (mut screen, before, mut now) = screen();
        let long = "n".repeat(200);
        let many: Vec<(String, u64)> = (0..50).map(|index| (format!("{long}{index}"), 1000 - index)).collect();
        let counts: Vec<_> = many.iter().map(|(name, count)| (name.as_str(), "x", "200", *count)).collect();
        for big in [false, true] {
            if big {
                now = scrape(&counts);
            }
            screen.take(&before, &now, Duration::from_secs(1));
            for (columns, lines) in [(80, 24), (40, 10), (200, 60), (20, 3), (1, 1)] {
                for chosen in [0, screen.rows.len() - 1] {
                    screen.chosen = chosen;
                    let frame = screen.frame(columns, lines);
                    assert!(frame.len() <= lines, "{} of {lines}", frame.len());
                    assert!(frame.iter().all(|line| width(line) <= columns), "{columns}: {frame:#?}");
                    assert!(!frame.concat().contains('\x1b'));
                }
            }
        }
        screen.chosen = 49;
        let frame = screen.frame(80, 24).concat();
        assert!(frame.contains("n49"), "the chosen row is seen, and the end of its name: {frame}");
        screen.fail("gone".to_owned());
        assert!(screen.frame(80, 24)[1].contains("gone"));
    }
}
