//! Whether a template and its schema fit each other, so that a description file with a mistake is found when it is read
//! and not when a device is made.

use serde_json::Value;

use super::{Argument, Piece, Source, property};

/// Whether every value is known to the schema, and there wherever the command can't do without it.
pub(super) fn arguments<'a>(
    all: &'a [Argument],
    schema: &Value,
    guards: &mut Vec<&'a [String]>,
) -> Result<(), String> {
    for argument in all {
        match argument {
            Argument::One(all) => pieces(all, schema, guards)?,
            Argument::When(path, inner) => {
                known(path, schema)?;
                guards.push(path);
                let sure = arguments(inner, schema, guards);
                guards.pop();
                sure?;
            }
        }
    }
    Ok(())
}

fn pieces<'a>(
    all: &'a [Piece],
    schema: &Value,
    guards: &mut Vec<&'a [String]>,
) -> Result<(), String> {
    for piece in all {
        match piece {
            Piece::Gap(Source::Config(path), _) => {
                known(path, schema)?;
                if !is_sure(path, schema, guards) {
                    return Err(format!(
                        "config.{} may be absent: put it into [ ] or a \"when\", list it in the schema's \"required\", \
                         or give it a \"default\"",
                        path.join(".")
                    ));
                }
            }
            Piece::Gap(..) | Piece::Text(_) => {}
            Piece::Optional(inner) => {
                let before = guards.len();
                guards.extend(inner.iter().filter_map(|piece| match piece {
                    Piece::Gap(Source::Config(path), _) => Some(path.as_slice()),
                    _ => None,
                }));
                let sure = pieces(inner, schema, guards);
                guards.truncate(before);
                sure?;
            }
        }
    }
    Ok(())
}

fn known(path: &[String], schema: &Value) -> Result<(), String> {
    match property(schema, path) {
        Some(_) => Ok(()),
        None => Err(format!(
            "config.{} is not among the \"properties\" of config_schema (a \"$ref\" is not followed)",
            path.join(".")
        )),
    }
}

fn is_sure(path: &[String], schema: &Value, guards: &[&[String]]) -> bool {
    let defaulted = |it: &Value| it.get("default").is_some_and(|it| !it.is_null());
    property(schema, path).is_some_and(defaulted)
        || (1..=path.len()).all(|length| {
            let guarded = guards.iter().any(|it| it.starts_with(&path[..length]));
            guarded || {
                let outer = property(schema, &path[..length - 1]);
                let required = outer.and_then(|it| it.get("required")?.as_array());
                required.is_some_and(|it| it.iter().any(|it| *it == *path[length - 1]))
            }
        })
}
