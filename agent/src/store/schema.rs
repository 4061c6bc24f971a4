//! The tables, and how a store of an earlier agent becomes one of this agent's.

use redb::{ReadableTable, TableDefinition, WriteTransaction};
use serde_json::{Value, json};

/// What this agent writes.
pub(super) const VERSION: u64 = 2;

pub(super) type Table = TableDefinition<'static, &'static str, &'static [u8]>;

/// Records by id.
pub(super) const DEVICES: Table = TableDefinition::new("devices");
/// What is the agent's own.
pub(super) const AGENT: Table = TableDefinition::new("agent");
pub(super) const DRAIN: &str = "drain";
/// The last calls that deleted devices, under numbers that sort by age.
pub(super) const DELETIONS: Table = TableDefinition::new("deletions");
const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");
const SCHEMA: &str = "schema";

/// Makes the tables what they are to be, or says which newer schema they have.
pub(super) fn bring_up_to_date(
    transaction: &WriteTransaction,
) -> Result<Result<(), u64>, redb::Error> {
    let mut meta = transaction.open_table(META)?;
    let found = meta.get(SCHEMA)?.map(|it| it.value());
    match found {
        Some(found) if found > VERSION => return Ok(Err(found)),
        Some(1) => from_1(transaction)?,
        _ => {}
    }
    for table in [DEVICES, AGENT, DELETIONS] {
        transaction.open_table(table)?;
    }
    if found != Some(VERSION) {
        meta.insert(SCHEMA, VERSION)?;
    }
    Ok(Ok(()))
}

/// Version 1 knew no history of a device, and of its calls those that created and updated it. What is no record of
/// version 1 stays as it is, for whoever reads it to say so.
fn from_1(transaction: &WriteTransaction) -> Result<(), redb::Error> {
    let mut devices = transaction.open_table(DEVICES)?;
    let mut changed = Vec::new();
    for row in devices.iter()? {
        let (id, bytes) = row?;
        let Ok(Value::Object(mut record)) = serde_json::from_slice(bytes.value()) else {
            continue;
        };
        let calls = record.remove("updated_by").unwrap_or_else(|| json!([]));
        record.insert("calls".to_owned(), calls);
        record.insert("deleted_by".to_owned(), Value::Null);
        let history = json!({"restart_count": 0, "failure": null});
        record.insert("history".to_owned(), history);
        changed.push((id.value().to_owned(), Value::Object(record)));
    }
    for (id, record) in changed {
        let bytes = serde_json::to_vec(&record).expect("JSON objects have string keys only");
        devices.insert(&*id, &*bytes)?;
    }
    Ok(())
}
