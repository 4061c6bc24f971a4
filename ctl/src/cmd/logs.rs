//! `vfuctl logs`

use proto::v1::{LogLine, ReadLogsRequest};

use super::device_name;
use crate::{
    args::Logs,
    client::Client,
    error::{Error, printable},
    output::{Format, Output, json},
};

/// Shows the lines as they come.
pub(crate) async fn run(args: Logs, client: &Client, output: &mut Output<'_>) -> Result<(), Error> {
    let request = ReadLogsRequest {
        name: device_name(&args.id),
        tail_lines: args.tail,
        since: args.since,
        follow: args.follow,
    };
    let mut devices = client.devices();
    let mut stream = client.answer(devices.read_logs(request)).await?;
    // Who follows waits for as long as nothing is logged.
    let limit = (!args.follow).then_some(client.timeout());
    while let Some(answer) = client.next(&mut stream, limit).await? {
        let mut text = String::new();
        for line in &answer.lines {
            text.push_str(&shown(line, output.format())?);
        }
        output.text(&text)?;
    }
    Ok(())
}

fn shown(line: &LogLine, format: Format) -> Result<String, Error> {
    Ok(match format {
        // A guest may have a say in what is logged.
        Format::Table | Format::Wide | Format::Name => {
            let cells: Vec<_> = line.text.split('\t').map(printable).collect();
            format!("{}\n", cells.join("\t"))
        }
        format => format.item(&json("LogLine", line)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_obeys_nobody_but_its_reader() {
        let line = LogLine {
            text: "a\tb\u{1b}[2J".into(),
            time: None,
        };
        let text = |format| shown(&line, format).unwrap();
        assert_eq!(text(Format::Table), "a\tb\u{fffd}[2J\n");
        assert_eq!(text(Format::Json), "{\"text\":\"a\\tb\\u001b[2J\"}\n");
        assert!(text(Format::Yaml).starts_with("---\ntext: "));
    }
}
