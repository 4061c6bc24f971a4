//! What is written, taken apart.

use super::{Argument, Form, Piece, Source, When, Written};
use crate::schema::quoted;

/// So many arguments a template has at most.
const MAX_ARGUMENTS: usize = 256;
/// So deep are optional parts in each other.
const MAX_DEPTH: usize = 4;

/// The arguments as they are written, so deep in others. Counts them all.
pub(super) fn arguments(
    written: &[Written],
    depth: usize,
    count: &mut usize,
) -> Result<Vec<Argument>, String> {
    if depth > MAX_DEPTH {
        return Err(format!("when: more than {MAX_DEPTH} in each other"));
    }
    let mut parsed = Vec::new();
    for argument in written {
        *count += 1;
        if *count > MAX_ARGUMENTS {
            return Err(format!("more than {MAX_ARGUMENTS} arguments"));
        }
        parsed.push(match argument {
            Written::Argument(it) => {
                let pieces = text(it).map_err(|why| format!("{}: {why}", quoted(it)))?;
                Argument::One(pieces)
            }
            Written::When(When { when, args }) => {
                let path = config_path(when)
                    .ok_or_else(|| format!("when: {} is not config.x", quoted(when)))?;
                Argument::When(path, arguments(args, depth + 1, count)?)
            }
        });
    }
    Ok(parsed)
}

fn text(text: &str) -> Result<Vec<Piece>, String> {
    if text.chars().any(char::is_control) {
        return Err("has a control character".to_owned());
    }
    // The innermost part that is open is the last.
    let mut open = vec![Vec::new()];
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let depth = open.len();
        let pieces = open.last_mut().expect("the outermost never closes");
        let doubled = rest.starts_with("{{") || rest.starts_with("}}");
        match first {
            '{' | '}' if doubled => {
                push_text(pieces, &rest[..1]);
                rest = &rest[2..];
                continue;
            }
            '{' => {
                let (inner, after) = rest[1..]
                    .split_once('}')
                    .ok_or("{ has no }; {{ stands for the character")?;
                match inner {
                    // Doubled they would be parts in each other.
                    "[" | "]" => push_text(pieces, inner),
                    _ => pieces.push(gap(inner)?),
                }
                rest = after;
                continue;
            }
            '[' if depth > MAX_DEPTH => {
                return Err(format!("more than {MAX_DEPTH} [ in each other"));
            }
            '[' => open.push(Vec::new()),
            ']' if depth > 1 => {
                let inner = open.pop().expect("there are two");
                if !inner.iter().any(is_from_config) {
                    return Err(
                        "[ ] has no {config.x} that could be absent; {[} and {]} stand for the \
                                characters"
                            .to_owned(),
                    );
                }
                let outer = open.last_mut().expect("there was another");
                outer.push(Piece::Optional(inner));
            }
            '}' => return Err("} closes nothing; }} stands for the character".to_owned()),
            ']' => return Err("] closes nothing; {]} stands for the character".to_owned()),
            other => push_text(pieces, &rest[..other.len_utf8()]),
        }
        rest = &rest[first.len_utf8()..];
    }
    match open.pop() {
        Some(pieces) if open.is_empty() => Ok(pieces),
        _ => Err("[ has no ]; {[} stands for the character".to_owned()),
    }
}

fn is_from_config(piece: &Piece) -> bool {
    matches!(piece, Piece::Gap(Source::Config(_), _))
}

fn push_text(pieces: &mut Vec<Piece>, text: &str) {
    match pieces.last_mut() {
        Some(Piece::Text(last)) => last.push_str(text),
        _ => pieces.push(Piece::Text(text.to_owned())),
    }
}

fn gap(gap: &str) -> Result<Piece, String> {
    let (name, form) = match gap.split_once('|') {
        None => (gap, Form::Plain),
        Some((name, "qemu")) => (name, Form::Qemu),
        Some((name, "json")) => (name, Form::Json),
        Some((name, "raw")) => (name, Form::Raw),
        Some((name, "options")) => (name, Form::Options),
        Some((_, other)) => {
            return Err(format!(
                "there is no form {}; there are: qemu, json, options, raw",
                quoted(other)
            ));
        }
    };
    let source = match name {
        "socket" => Source::Socket,
        "fd" => Source::Fd,
        "id" => Source::Id,
        "run_dir" => Source::RunDir,
        "monitor" => Source::Monitor,
        _ => {
            let path = config_path(name).ok_or_else(|| {
                format!("there is no {{{name}}}; there are: socket, fd, id, run_dir, monitor and config.x")
            })?;
            Source::Config(path)
        }
    };
    Ok(Piece::Gap(source, form))
}

fn config_path(name: &str) -> Option<Vec<String>> {
    let keys: Vec<_> = name
        .strip_prefix("config.")?
        .split('.')
        .map(str::to_owned)
        .collect();
    (!keys.iter().any(String::is_empty)).then_some(keys)
}
