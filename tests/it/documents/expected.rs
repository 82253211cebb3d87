//! Whether a command printed what its document shows.

/// Compares what was printed with the lines that are shown.
pub(super) fn compare(shown: &[String], printed: &str) -> Result<(), String> {
    let shown: Vec<_> = shown.iter().map(|line| plain(line.trim_end())).collect();
    let lines: Vec<_> = printed.lines().map(|line| plain(line.trim_end())).collect();
    if matches(&shown, &lines) {
        return Ok(());
    }
    Err(format!("it shows\n{}\nand this came:\n{}", shown.join("\n"), lines.join("\n")))
}

fn matches(shown: &[String], lines: &[String]) -> bool {
    match shown.split_first() {
        None => lines.is_empty(),
        Some((first, rest)) if first == "..." => {
            (0..=lines.len()).any(|skipped| matches(rest, &lines[skipped..]))
        }
        Some((first, rest)) => {
            lines.first().is_some_and(|line| like(first, line)) && matches(rest, &lines[1..])
        }
    }
}

/// Whether a line is what is shown, where `...` stands for any text.
fn like(shown: &str, line: &str) -> bool {
    let Some((start, rest)) = shown.split_once("...") else { return shown == line };
    let Some(line) = line.strip_prefix(start) else { return false };
    (0..=line.len()).filter(|&at| line.is_char_boundary(at)).any(|at| like(rest, &line[at..]))
}

/// A line with what is new each time replaced by what it is.
fn plain(line: &str) -> String {
    let mut out = String::new();
    let mut word = String::new();
    for c in line.chars().chain([' ']) {
        if c.is_ascii_alphanumeric() || "+/=:-".contains(c) {
            word.push(c);
            continue;
        }
        let end = word.trim_end_matches(':').len();
        out.push_str(kind_of(&word[..end]));
        out.push_str(&word[end..]);
        word.clear();
        out.push(c);
    }
    out.pop();
    out
}

fn kind_of(word: &str) -> &str {
    let hex = |word: &str| word.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let time = |word: &str| {
        let shape: String =
            word.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        shape == "0000-00-00T00:00:00Z"
    };
    match word {
        _ if word.len() == 32 && hex(word) => "<id>",
        _ if word.len() == 16 && hex(word) => "<request id>",
        _ if word.starts_with("kp:") && word.len() > 60 => "kp:<envelope>",
        _ if time(word) => "<time>",
        // Longer than any word, and no path.
        _ if word.len() >= 24 && !word.contains(':') && !word.contains('-') && mixed(word) => {
            "<base64>"
        }
        _ => word,
    }
}

fn mixed(word: &str) -> bool {
    word.bytes().any(|b| b.is_ascii_uppercase()) && word.bytes().any(|b| b.is_ascii_digit())
}
