//! What a template makes of configurations, kind and hostile.

use proptest::prelude::*;
use serde_json::json;

use super::*;

const OWN: Own<'static> = Own {
    socket: "/run/vfu/devices/a/vfio-user.sock",
    fd: 3,
    id: "a",
    run_dir: "/run/vfu/devices/a",
    monitor: "/run/vfu/devices/a/monitor.sock",
};

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "mac": {"type": "string"},
            "title": {"type": "string"},
            "count": {"type": "integer", "default": 2},
            "debug": {"type": "boolean"},
            "more": {"type": "object"},
            "net": {"type": "object", "properties": {"name": {}, "mode": {}}, "required": ["name"]}
        },
        "required": ["title"]
    })
}

fn template(command: Value) -> Result<Template, String> {
    let written: Vec<Written> = serde_json::from_value(command).unwrap();
    Template::new(&written, &schema())
}

fn expand(command: Value, config: &Value) -> Result<Vec<String>, Vec<Violation>> {
    let template = template(command).unwrap();
    template.expand(OWN, config, &schema())
}

#[test]
fn gaps_are_filled_and_what_is_absent_is_left_out() {
    let command = json!([
        "--socket={socket}", "--fd", "{fd}", "{id}", "{run_dir}/x", "{{{[}{config.count}{]}}}",
        "e1000[,mac={config.mac}[,mode={config.net.mode}]]",
        {"when": "config.net", "args": ["--net", "{config.net.name}"]},
        {"when": "config.debug", "args": ["-v"]},
    ]);
    let start = [
        "--socket=/run/vfu/devices/a/vfio-user.sock",
        "--fd",
        "3",
        "a",
        "/run/vfu/devices/a/x",
    ];
    let few = expand(
        command.clone(),
        &json!({"title": "", "debug": false, "mac": null}),
    );
    let few = few.unwrap();
    assert_eq!(few[..5], start);
    assert_eq!(few[5..], ["{[2]}", "e1000"]);
    let config = json!({
        "count": 4, "debug": true, "mac": "52:54:00:00:00:01", "net": {"name": "tap0", "mode": "l2"}
    });
    let all = expand(command, &config).unwrap();
    assert_eq!(all[..5], start);
    let rest = [
        "{[4]}",
        "e1000,mac=52:54:00:00:00:01,mode=l2",
        "--net",
        "tap0",
        "-v",
    ];
    assert_eq!(all[5..], rest);
}

#[test]
fn a_value_that_could_be_taken_for_something_else_is_refused_or_escaped() {
    let refused = |form: &str, value: &str, why: &str| {
        let bad = expand(json!([form]), &json!({"title": value})).unwrap_err();
        assert_eq!(bad[0].field, "title");
        assert!(bad[0].description.contains(why), "{value}: {bad:?}");
    };
    for bad in [
        "a,b=c",
        "a b",
        "a;b",
        "a=b",
        "{\"a\":1}",
        "$(x)",
        "a\\b",
        "@file",
        "a'b",
        "a|b",
    ] {
        refused("{config.title}", bad, "must not have");
        refused("--title={config.title}", bad, "must not have");
    }
    for form in [
        "{config.title}",
        "{config.title|raw}",
        "{config.title|qemu}",
    ] {
        refused(form, "--exec", "must not begin with -");
        refused(form, "a\0b", "control");
        refused(form, "a\nb", "control");
        refused(&format!("[{{config.mac}}]{form}"), "-e", "begin with -");
    }
    refused("{config.title|qemu}", "{\"driver\":\"x\"}", "JSON");
    let allowed = |form: &str, value: &str| {
        expand(json!([form]), &json!({"title": value})).unwrap()[0].clone()
    };
    assert_eq!(allowed("t={config.title}", "-1"), "t=-1");
    assert_eq!(allowed("{config.title|qemu}", "a,b=c"), "a,,b=c");
    assert_eq!(
        allowed("{{\"t\":{config.title|json}}}", "\",\"x\":\"\n"),
        r#"{"t":"\",\"x\":\"\n"}"#
    );
    assert_eq!(allowed("{config.title|raw}", "a b,c"), "a b,c");
}

#[test]
fn the_members_of_an_object_become_options() {
    let write = |more: Value| {
        let config = json!({"title": "", "more": more});
        expand(json!(["card[{config.more|options}]"]), &config)
    };
    let options = json!({"a.b": "x,y=z", "c-d": 1, "e_f": true});
    assert_eq!(write(options).unwrap(), ["card,a.b=x,,y=z,c-d=1,e_f=true"]);
    assert_eq!(write(json!({})).unwrap(), ["card"]);
    assert_eq!(write(Value::Null).unwrap(), ["card"]);
    for (bad, why) in [
        (json!({"a,b": 1}), "letters"),
        (json!({"": 1}), "letters"),
        (json!({"a": []}), "a: must be"),
        (json!({"a": "\n"}), "control"),
        (json!("a=1"), "object"),
    ] {
        let error = write(bad).unwrap_err();
        assert_eq!(error[0].field, "more");
        assert!(error[0].description.contains(why), "{error:?}");
    }
}

#[test]
fn a_template_with_a_mistake_says_what_would_be_right() {
    for (argument, cure) in [
        (json!("{config.mca}"), "properties"),
        (json!("{config.mac}"), "may be absent"),
        (json!("{config.net.name}"), "may be absent"),
        (
            json!({"when": "config.net", "args": ["{config.net.mode}"]}),
            "may be absent",
        ),
        (json!({"when": "net", "args": []}), "config.x"),
        (json!("{sokcet}"), "there are: socket"),
        (json!("{config.}"), "there are: socket"),
        (json!("{config.title|shell}"), "qemu, json, options, raw"),
        (json!("{socket"), "{{"),
        (json!("a}"), "}}"),
        (json!("a]"), "{]}"),
        (json!("[{config.mac}"), "{[}"),
        (json!("[a]"), "{[}"),
        (json!("[".repeat(12)), "in each other"),
        (json!("a\0"), "control"),
    ] {
        let error = template(json!([argument])).unwrap_err();
        assert!(error.contains(cure), "{argument}: {error}");
    }
    let many = vec![json!("a"); 257];
    assert!(template(Value::from(many)).unwrap_err().contains("256"));
    let deep = (0..8).fold(
        json!("a"),
        |it, _| json!({"when": "config.mac", "args": [it]}),
    );
    assert!(template(json!([deep])).unwrap_err().contains("when"));
}

#[test]
fn a_command_that_gets_too_long_is_refused() {
    let long = "a".repeat(MAX_COMMAND_BYTES / 2);
    let twice = json!(["{config.title}", "{config.title}"]);
    let bad = expand(twice, &json!({"title": long})).unwrap_err();
    assert!(bad[0].description.contains("bytes"), "{bad:?}");
}

/// The values of QEMU's `a=1,b=2`, where two commas are one that is meant.
fn options(text: &str) -> Vec<String> {
    let mut all = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(next) = rest.next() {
        match next {
            ',' if rest.next_if_eq(&',').is_none() => all.push(String::new()),
            other => all.last_mut().unwrap().push(other),
        }
    }
    all
}

proptest! {
    #[test]
    fn no_value_makes_another_argument_or_option(title in any::<String>(), mac in any::<Option<String>>()) {
        let command = json!([
            "{config.title|raw}", "t,title={config.title|qemu}[,mac={config.mac|qemu}]", "--plain={config.title}",
            "{{\"t\":{config.title|json}}}"
        ]);
        let config = json!({"title": title, "mac": mac});
        let Ok(arguments) = expand(command, &config) else {
            return Ok(());
        };
        prop_assert_eq!(arguments.len(), 4);
        prop_assert_eq!(&arguments[0], &title);
        prop_assert!(!arguments[0].starts_with('-'));
        let mut expected = vec!["t".to_owned(), format!("title={title}")];
        expected.extend(mac.map(|it| format!("mac={it}")));
        prop_assert_eq!(options(&arguments[1]), expected);
        prop_assert_eq!(&arguments[2], &format!("--plain={title}"));
        let back: Value = serde_json::from_str(&arguments[3]).unwrap();
        prop_assert_eq!(back, json!({"t": title}));
    }

    #[test]
    fn what_qemu_reads_is_what_was_configured(title in "[a-z,={}\"\\[\\] -]{0,20}") {
        let command = json!(["t,title={config.title|qemu},end=1"]);
        let arguments = expand(command, &json!({"title": title})).unwrap();
        prop_assert_eq!(options(&arguments[0]), ["t".to_owned(), format!("title={title}"), "end=1".to_owned()]);
    }

    #[test]
    fn no_text_breaks_the_parser(text in "[a-z{}\\[\\]|.,é]{0,40}") {
        let _ = template(json!([text]));
    }
}
