//! DEVICE_FEATURE, and what it is for: migration and dirty pages.

use std::ops::Range;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Client, Error, MAX_TRANSFER_BYTES, Memory, connection::Request};
use crate::{
    MigrationState,
    message::{
        Command, DeviceFeature, FeatureDeviceState, FeatureMigration, LoggingControl, LoggingRange,
        LoggingReport, MigrationData,
    },
};

/// A feature of a device, by its index. Others than these may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature(pub u16);

impl Feature {
    /// The device can be migrated.
    pub const MIGRATION: Self = Self(DeviceFeature::MIGRATION as u16);
    /// The state of its migration.
    pub const MIG_DEVICE_STATE: Self = Self(DeviceFeature::MIG_DEVICE_STATE as u16);
    /// Logging of written pages begins.
    pub const DMA_LOGGING_START: Self = Self(DeviceFeature::DMA_LOGGING_START as u16);
    /// Logging ends.
    pub const DMA_LOGGING_STOP: Self = Self(DeviceFeature::DMA_LOGGING_STOP as u16);
    /// Which pages were written.
    pub const DMA_LOGGING_REPORT: Self = Self(DeviceFeature::DMA_LOGGING_REPORT as u16);
}

/// What a feature can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// It can be asked.
    Get,
    /// It can be told.
    Set,
    /// Both.
    Both,
}

/// What of migration a device can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MigrationFlags {
    /// The state can be read while the device is stopped.
    pub stop_copy: bool,
    /// It can be stopped from reaching other devices.
    pub p2p: bool,
    /// The state can be read while the device runs.
    pub pre_copy: bool,
}

impl<M: Memory> Client<M> {
    /// DEVICE_FEATURE, PROBE: grants what the device has and refuses the rest.
    ///
    /// # Errors
    /// What the server or the connection says.
    pub fn feature_probe(&mut self, feature: Feature, method: Method) -> Result<(), Error> {
        let methods = match method {
            Method::Get => DeviceFeature::GET,
            Method::Set => DeviceFeature::SET,
            Method::Both => DeviceFeature::GET | DeviceFeature::SET,
        };
        self.feature(feature, DeviceFeature::PROBE | methods, &[], 0)
            .map(drop)
    }

    /// DEVICE_FEATURE, GET: asks with `data`, and returns at most `max_bytes` of answer.
    ///
    /// # Errors
    /// What the server or the connection says.
    pub fn feature_get(
        &mut self,
        feature: Feature,
        data: &[u8],
        max_bytes: usize,
    ) -> Result<Vec<u8>, Error> {
        self.feature(feature, DeviceFeature::GET, data, max_bytes)
    }

    /// DEVICE_FEATURE, SET: tells `data`, and returns what the server says was set.
    ///
    /// # Errors
    /// What the server or the connection says.
    pub fn feature_set(&mut self, feature: Feature, data: &[u8]) -> Result<Vec<u8>, Error> {
        self.feature(feature, DeviceFeature::SET, data, data.len())
    }

    /// What of migration the device can do.
    ///
    /// # Errors
    /// What the server or the connection says; refused: nothing.
    pub fn migration_flags(&mut self) -> Result<MigrationFlags, Error> {
        let size = size_of::<FeatureMigration>();
        let data = self.feature_get(Feature::MIGRATION, &[], size)?;
        let FeatureMigration { flags } = parse(&data)?.0;
        Ok(MigrationFlags {
            stop_copy: flags & FeatureMigration::STOP_COPY != 0,
            p2p: flags & FeatureMigration::P2P != 0,
            pre_copy: flags & FeatureMigration::PRE_COPY != 0,
        })
    }

    /// The state of the device's migration.
    ///
    /// # Errors
    /// What the server or the connection says.
    pub fn migration_state(&mut self) -> Result<MigrationState, Error> {
        let size = size_of::<FeatureDeviceState>();
        let data = self.feature_get(Feature::MIG_DEVICE_STATE, &[], size)?;
        Ok(parse::<FeatureDeviceState>(&data)?.0.state)
    }

    /// Brings the device into another state of its migration.
    ///
    /// # Errors
    /// What the server or the connection says.
    pub fn set_migration_state(&mut self, state: MigrationState) -> Result<(), Error> {
        let data = FeatureDeviceState { state, data_fd: 0 };
        self.feature_set(Feature::MIG_DEVICE_STATE, data.as_bytes())
            .map(drop)
    }

    /// MIG_DATA_READ: the next bytes of the device's state; fewer than `size_bytes` are the last.
    ///
    /// # Errors
    /// What the server or the connection says.
    pub fn mig_data_read(&mut self, size_bytes: usize) -> Result<Vec<u8>, Error> {
        const HEAD: usize = size_of::<MigrationData>();
        let request = migration_data(HEAD + size_bytes, size_bytes)?;
        let reply = self.call(Request {
            parts: [request.as_bytes(), &[], &[]],
            max_reply_bytes: HEAD + size_bytes,
            ..Request::new(Command::MIG_DATA_READ)
        })?;
        let (head, data) = parse::<MigrationData>(&reply.payload)?;
        if head.size_bytes as usize != data.len() {
            return Err(Error::Protocol(
                "migration data has not the size that it says",
            ));
        }
        Ok(data.to_vec())
    }

    /// MIG_DATA_WRITE: the next bytes of the state that the device is to take over.
    ///
    /// # Errors
    /// What the server or the connection says.
    pub fn mig_data_write(&mut self, data: &[u8]) -> Result<(), Error> {
        let request = migration_data(size_of::<MigrationData>() + data.len(), data.len())?;
        self.call(Request {
            parts: [request.as_bytes(), data, &[]],
            ..Request::new(Command::MIG_DATA_WRITE)
        })
        .map(drop)
    }

    /// Begins to log which pages of `ranges` (none: of all memory) the device writes; returns the page size that the
    /// server chose.
    ///
    /// # Errors
    /// What the server or the connection says.
    pub fn dma_logging_start(
        &mut self,
        page_size_bytes: u64,
        ranges: &[Range<u64>],
    ) -> Result<u64, Error> {
        let control = LoggingControl {
            page_size_bytes,
            range_count: u32::try_from(ranges.len())
                .map_err(|_| Error::Argument("more ranges than can be counted"))?,
            reserved: 0,
        };
        let mut data = control.as_bytes().to_vec();
        for range in ranges {
            let range = LoggingRange {
                iova: range.start,
                size_bytes: range.end.saturating_sub(range.start),
            };
            data.extend_from_slice(range.as_bytes());
        }
        let answer = self.feature_set(Feature::DMA_LOGGING_START, &data)?;
        Ok(parse::<LoggingControl>(&answer)?.0.page_size_bytes)
    }

    /// Ends it.
    ///
    /// # Errors
    /// What the server or the connection says.
    pub fn dma_logging_stop(&mut self) -> Result<(), Error> {
        self.feature_set(Feature::DMA_LOGGING_STOP, &[]).map(drop)
    }

    /// Which pages the device wrote since the last report, a bit for each page from `iova` on.
    ///
    /// # Errors
    /// What the server or the connection says.
    pub fn dma_logging_report(
        &mut self,
        iova: u64,
        size_bytes: u64,
        page_size_bytes: u64,
    ) -> Result<Vec<u64>, Error> {
        const HEAD: usize = size_of::<LoggingReport>();
        let bytes = bitmap_bytes(size_bytes, page_size_bytes)?;
        let report = LoggingReport {
            iova,
            size_bytes,
            page_size_bytes,
        };
        let feature = Feature::DMA_LOGGING_REPORT;
        let data = self.feature_get(feature, report.as_bytes(), HEAD + bytes)?;
        bitmap(data.get(HEAD..), bytes)
    }

    /// What follows the head of the reply.
    fn feature(
        &mut self,
        feature: Feature,
        methods: u32,
        data: &[u8],
        max_bytes: usize,
    ) -> Result<Vec<u8>, Error> {
        const HEAD: usize = size_of::<DeviceFeature>();
        let max_bytes = max_bytes.max(data.len());
        let head = DeviceFeature {
            argsz: u32::try_from(HEAD + max_bytes)
                .map_err(|_| Error::Argument("more data than a feature can have"))?,
            flags: u32::from(feature.0) | methods,
        };
        let reply = self.call(Request {
            parts: [head.as_bytes(), data, &[]],
            max_reply_bytes: HEAD + max_bytes,
            ..Request::new(Command::DEVICE_FEATURE)
        })?;
        let (answer, data) = parse::<DeviceFeature>(&reply.payload)?;
        if answer.flags & DeviceFeature::INDEX_MASK != u32::from(feature.0) {
            return Err(Error::Protocol("another feature was answered"));
        }
        Ok(data.to_vec())
    }
}

fn migration_data(argsz: usize, size_bytes: usize) -> Result<MigrationData, Error> {
    if size_bytes > MAX_TRANSFER_BYTES {
        return Err(Error::Argument("more data than one message can have"));
    }
    Ok(MigrationData {
        argsz: argsz as u32,
        size_bytes: size_bytes as u32,
    })
}

fn parse<T: FromBytes + Immutable + KnownLayout>(data: &[u8]) -> Result<(T, &[u8]), Error> {
    T::read_from_prefix(data).map_err(|_| Error::Protocol("a reply is too short"))
}

/// How long the bitmap of so many bytes is: a bit for each page, in words of 64 bits.
pub(super) fn bitmap_bytes(size_bytes: u64, page_size_bytes: u64) -> Result<usize, Error> {
    if !page_size_bytes.is_power_of_two() {
        return Err(Error::Argument("a page size is a power of two"));
    }
    let words = size_bytes.div_ceil(page_size_bytes).div_ceil(64);
    match usize::try_from(words) {
        Ok(words) if words <= MAX_TRANSFER_BYTES / size_of::<u64>() => Ok(words * size_of::<u64>()),
        _ => Err(Error::Argument(
            "the bitmap is longer than one message: ask for less memory",
        )),
    }
}

/// A bitmap that a reply ends with, as words.
pub(super) fn bitmap(data: Option<&[u8]>, bytes: usize) -> Result<Vec<u64>, Error> {
    let data = data
        .filter(|data| data.len() == bytes)
        .ok_or(Error::Protocol(
            "a bitmap has not the size that was asked for",
        ))?;
    let (words, _) = data.as_chunks();
    Ok(words.iter().map(|word| u64::from_ne_bytes(*word)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bitmaps_have_whole_words_and_an_end() {
        for (size, bytes) in [
            (1, 8),
            (64 << 12, 8),
            ((64 << 12) + 1, 16),
            (1 << 30, 32 << 10),
        ] {
            assert_eq!(bitmap_bytes(size, 4096).unwrap(), bytes);
        }
        assert!(bitmap_bytes(u64::MAX, 1).is_err());
        assert!(bitmap_bytes(4096, 0).is_err() && bitmap_bytes(4096, 4095).is_err());
        assert!(bitmap(Some(&[0; 7]), 8).is_err() && bitmap(None, 8).is_err());
    }
}
