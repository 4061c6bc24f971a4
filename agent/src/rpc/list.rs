//! ListDevices: pages of how devices were last shown.

use proto::v1;
use tonic::Status;

use super::status::invalid_field;
use super::{Service, convert, wire};

/// A page ends early when it has this many bytes: with the largest of devices after it, it still
/// fits into the 4 MiB that callers take unless they are told otherwise.
const MAX_PAGE_BYTES: usize = 2 << 20;

/// One page.
pub(super) fn list(
    service: &Service,
    request: &v1::ListDevicesRequest,
) -> Result<v1::ListDevicesResponse, Status> {
    let count = convert::page_size(request.page_size)?;
    let filter = wire::filter(&request.filter)?;
    let page = Page::parse(&request.page_token)?;
    let changes = &service.supervisor.shared.changes;
    let most = match filter.is_empty() {
        true => count + 1,
        false => usize::MAX,
    };
    let (found, now) = changes.list(page.map(|it| it.after), most);
    // What changes between two pages is news to who watches from the first one on.
    let version = page.map_or(&*now, |it| it.version);
    let mut answer = v1::ListDevicesResponse::default();
    let mut bytes = 0;
    let mut after = "";
    for snapshot in found.iter().filter(|it| wire::matches(&filter, it)) {
        if answer.devices.len() == count || bytes > MAX_PAGE_BYTES {
            answer.next_page_token = Page { version, after }.token();
            break;
        }
        bytes += snapshot.encoded.len();
        after = &snapshot.identity.id;
        answer.devices.push(wire::decode(snapshot)?);
    }
    answer.resource_version = version.to_owned();
    Ok(answer)
}

/// Where a page that is not the first begins, and the version of the first. Only the agent looks into its token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Page<'a> {
    version: &'a str,
    after: &'a str,
}

impl<'a> Page<'a> {
    fn token(&self) -> String {
        convert::page_token(&format!("{}:{}", self.version, self.after))
    }

    /// `None` of a token that is empty, as the first page's is.
    fn parse(token: &'a str) -> Result<Option<Self>, Status> {
        let Some(rest) = convert::page_after(token)? else {
            return Ok(None);
        };
        match rest.split_once(':') {
            Some((version, after)) => Ok(Some(Self { version, after })),
            None => Err(invalid_field(
                "page_token",
                "not a next_page_token of ListDevices",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_where_the_page_begins_and_which_version_the_first_had() {
        let page = Page {
            version: "0123-7",
            after: "nic0",
        };
        let token = page.token();
        assert_eq!(Page::parse(&token).unwrap(), Some(page));
        assert_eq!(Page::parse("").unwrap(), None);
        assert!(Page::parse("after:nic0").is_err());
        assert!(Page::parse("nic0").is_err());
    }
}
