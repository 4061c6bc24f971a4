//! `vfuctl models`

use proto::v1::{Bar, ListModelsRequest, Model, bar};
use serde_json::json;

use crate::{
    args::Models,
    client::Client,
    config::plain,
    error::Error,
    output::{Format, Output, from_struct, id, json, table},
    schema::{Kind, Schema, names},
};

/// Lists the models, or shows one.
pub(crate) async fn run(
    args: Models,
    client: &Client,
    output: &mut Output<'_>,
) -> Result<(), Error> {
    match args.name {
        Some(name) => {
            let model = client.model(&name).await?;
            match output.format() {
                Format::Name => output.text(&format!("{}\n", model.name)),
                Format::Json | Format::Yaml => output.value(&json("Model", &model)?),
                Format::Table | Format::Wide => output.text(&page(&model)),
            }
        }
        None => {
            let models = all(client).await?;
            match output.format() {
                Format::Name => {
                    let names = models.iter().map(|it| format!("{}\n", it.name));
                    output.text(&names.collect::<String>())
                }
                Format::Json | Format::Yaml => {
                    let models = models.iter().map(|it| json("Model", it));
                    let models = models.collect::<Result<Vec<_>, _>>()?;
                    output.value(&json!({ "models": models }))
                }
                Format::Table | Format::Wide => output.text(&list(&models)),
            }
        }
    }
}

async fn all(client: &Client) -> Result<Vec<Model>, Error> {
    let mut models = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = client.request(ListModelsRequest {
            page_size: 0,
            page_token,
        });
        let answer = client.answer(client.models().list_models(request)).await?;
        models.extend(answer.models);
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            return Ok(models);
        }
    }
}

fn list(models: &[Model]) -> String {
    let rows = models.iter().map(|model| {
        vec![
            id(&model.name).to_owned(),
            pci_id(model),
            class(model),
            model.description.clone(),
        ]
    });
    table(&["NAME", "PCI-ID", "CLASS", "DESCRIPTION"], rows)
}

/// Empty for a model whose devices differ in it.
fn pci_id(model: &Model) -> String {
    match (model.vendor_id, model.device_id) {
        (0, 0) => String::new(),
        (vendor, device) => format!("{vendor:04x}:{device:04x}"),
    }
}

/// The same.
fn class(model: &Model) -> String {
    match model.class_code {
        0 => String::new(),
        code => format!("{code:06x}"),
    }
}

/// What a guest reaches by it.
fn space(bar: &Bar) -> String {
    let size = match bar.size_bytes {
        bytes if bytes > 0 && bytes % 1024 == 0 => format!("{} KiB", bytes / 1024),
        bytes => format!("{bytes} bytes"),
    };
    let kind = match bar.kind() {
        bar::Kind::Memory32 => "of memory below 4 GiB",
        bar::Kind::Memory64 => "of memory",
        bar::Kind::Io => "of I/O ports",
        bar::Kind::Unspecified => "",
    };
    let prefetchable = if bar.prefetchable {
        ", prefetchable"
    } else {
        ""
    };
    format!("{size} {kind}{prefetchable}")
}

/// The schema of `model`'s configuration.
pub(crate) fn schema(model: &Model) -> Schema {
    let root = model.config_schema.as_ref().map(from_struct);
    Schema::new(id(&model.name), &root.unwrap_or_default())
}

fn page(model: &Model) -> String {
    let schema = schema(model);
    let rows = schema
        .fields
        .iter()
        .filter(|it| it.has_flag())
        .map(|field| {
            let kind = match &field.kind {
                Kind::Choice(choices) => names(choices).join("|"),
                Kind::Empty | Kind::Section { .. } => "{}".to_owned(),
                kind => kind.name().to_lowercase(),
            };
            let default = match &field.default {
                Some(_) if field.kind == Kind::Empty => "chosen".to_owned(),
                Some(default) => plain(default),
                None if field.required => "required".to_owned(),
                None => String::new(),
            };
            let description = field.description.split("\n\n").next();
            vec![
                field.path.clone(),
                kind,
                default,
                if field.mutable { "yes" } else { "no" }.to_owned(),
                description.unwrap_or_default().to_owned(),
            ]
        });
    let facts = [
        ("Name", id(&model.name).to_owned()),
        ("Description", model.description.clone()),
        ("PCI id", pci_id(model)),
        ("Class", class(model)),
        ("Runtime", model.runtime.clone()),
        ("Source", model.source.clone()),
        ("Unsupported", model.unsupported.join(", ")),
    ];
    let facts = facts.into_iter().filter(|(_, value)| !value.is_empty());
    let mut text = String::new();
    for (name, value) in facts {
        text.push_str(&format!("{:14}{value}\n", format!("{name}:")));
    }
    for bar in &model.bars {
        let name = format!("BAR {}:", bar.index);
        text.push_str(&format!("{name:14}{}\n", space(bar)));
    }
    text.push('\n');
    text.push_str(&table(
        &["FIELD", "TYPE", "DEFAULT", "UPDATE", "DESCRIPTION"],
        rows,
    ));
    text
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{output::to_struct, schema::tests::document};

    pub(crate) fn card() -> Model {
        Model {
            name: "models/e1000".into(),
            description: "Intel 82540EM Gigabit Ethernet".into(),
            vendor_id: 0x8086,
            device_id: 0x100e,
            class_code: 0x02_0000,
            config_schema: document().as_object().map(to_struct),
            bars: vec![
                Bar {
                    index: 0,
                    kind: bar::Kind::Memory32.into(),
                    size_bytes: 128 << 10,
                    prefetchable: false,
                },
                Bar {
                    index: 2,
                    kind: bar::Kind::Io.into(),
                    size_bytes: 64,
                    prefetchable: false,
                },
            ],
            source: "/usr/bin/vfu-device".into(),
            runtime: "vfu-device".into(),
            unsupported: Vec::new(),
        }
    }

    #[test]
    fn a_list_has_the_pci_ids() {
        assert_eq!(
            list(&[card()]),
            "\
NAME    PCI-ID      CLASS    DESCRIPTION
e1000   8086:100e   020000   Intel 82540EM Gigabit Ethernet
"
        );
    }

    #[test]
    fn a_page_has_where_a_model_comes_from_and_what_it_can_t_do() {
        let mut model = card();
        model.bars.clear();
        (model.vendor_id, model.device_id, model.class_code) = (0, 0, 0);
        model.unsupported = vec!["reset".into(), "stats".into()];
        let page = page(&model);
        let facts: Vec<_> = page.lines().skip(2).take(4).collect();
        assert_eq!(
            facts,
            [
                "Runtime:      vfu-device",
                "Source:       /usr/bin/vfu-device",
                "Unsupported:  reset, stats",
                ""
            ]
        );
    }

    #[test]
    fn a_page_has_the_fields() {
        let page = page(&card());
        assert!(
            page.starts_with("Name:         e1000\nDescription:  Intel 82540EM"),
            "{page}"
        );
        let bars = "BAR 0:        128 KiB of memory below 4 GiB\nBAR 2:        64 bytes of I/O ports\n\nFIELD";
        assert!(page.contains(bars), "{page}");
        for line in [
            "FIELD             TYPE             DEFAULT    UPDATE   DESCRIPTION",
            "net.stream.mode   connect|listen   required   no       <none>",
            "net.null          {}               chosen     no       Drops every frame.",
            "queues            integer          4          yes      Queues.",
        ] {
            assert!(page.lines().any(|it| it == line), "no `{line}` in\n{page}");
        }
    }
}
