//! JSON as YAML that every reader understands alike.
//!
//! Readers of YAML 1.1, which are many, take a bare `52:54:00:12:34:56` for a number to the base of 60 and a bare `no` for
//! false. A MAC address must survive that, so whatever is not plainly a word or a path is quoted.

use serde_json::{Map, Value};

/// Words that some readers do not take for text.
const RESERVED: [&str; 9] = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];

/// `value` as a YAML document.
pub(crate) fn document(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Object(object) if !object.is_empty() => mapping(object, 0, &mut text),
        Value::Array(list) if !list.is_empty() => sequence(list, 0, &mut text),
        value => {
            text.push_str(&scalar(value));
            text.push('\n');
        }
    }
    text
}

fn mapping(object: &Map<String, Value>, indent: usize, text: &mut String) {
    for (key, value) in object {
        text.push_str(&" ".repeat(indent));
        text.push_str(&string(key));
        text.push(':');
        match value {
            Value::Object(object) if !object.is_empty() => {
                text.push('\n');
                mapping(object, indent + 2, text);
            }
            Value::Array(list) if !list.is_empty() => {
                text.push('\n');
                sequence(list, indent, text);
            }
            value => {
                text.push(' ');
                text.push_str(&scalar(value));
                text.push('\n');
            }
        }
    }
}

fn sequence(list: &[Value], indent: usize, text: &mut String) {
    for value in list {
        let mut item = String::new();
        match value {
            Value::Object(object) if !object.is_empty() => mapping(object, indent + 2, &mut item),
            Value::Array(list) if !list.is_empty() => sequence(list, indent + 2, &mut item),
            value => item = format!("{}{}\n", " ".repeat(indent + 2), scalar(value)),
        }
        // The dash takes the place of the first line's indentation.
        text.push_str(&" ".repeat(indent));
        text.push_str("- ");
        text.push_str(item.get(indent + 2..).unwrap_or_default());
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => string(text),
        // Numbers, booleans, null, {} and [] are the same in both.
        value => value.to_string(),
    }
}

fn string(text: &str) -> String {
    let word = |c: char| c.is_ascii_alphanumeric() || "_-./ ".contains(c);
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && !text.ends_with(' ')
        && text.chars().all(word)
        && !RESERVED.contains(&text.to_ascii_lowercase().as_str());
    if plain {
        return text.to_owned();
    }
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn yaml_looks_as_people_write_it() {
        let value = json!({
            "devices": [
                {"name": "devices/nic0", "config": {"mac": "52:54:00:12:34:56", "net": {"loopback": {}}}},
                {"name": "devices/nic1", "conditions": [], "pid": 42}
            ],
            "list": [["a"], 1, null],
            "on": "no"
        });
        assert_eq!(
            document(&value),
            "\
devices:
- config:
    mac: \"52:54:00:12:34:56\"
    net:
      loopback: {}
  name: devices/nic0
- conditions: []
  name: devices/nic1
  pid: 42
list:
- - a
- 1
- null
\"on\": \"no\"
"
        );
    }

    #[test]
    fn another_reader_reads_the_same() {
        let texts = [
            "",
            " ",
            "a ",
            "a: b",
            "a #b",
            "- a",
            "'",
            "\"",
            "\\",
            "\n",
            "\u{1b}[0m",
            "\u{85}",
            "~",
            "1",
            "0x1",
            "1e3",
            "Yes",
            "ü",
            "a\tb",
            "/run/vfu",
            "{}",
            "[",
            "&a",
            "*a",
            "!a",
            "%",
            "@",
            "`",
            "a,b",
            "null",
        ];
        for text in texts {
            let value = json!({text: [text, {text: text}], "n": [1.5, -3, true, null, {}, []]});
            let read: Value = serde_yaml_ng::from_str(&document(&value)).unwrap();
            assert_eq!(read, value, "{}", document(&value));
        }
        for value in [json!({}), json!([]), json!("x"), json!([[[1]]])] {
            let read: Value = serde_yaml_ng::from_str(&document(&value)).unwrap();
            assert_eq!(read, value);
        }
    }
}
