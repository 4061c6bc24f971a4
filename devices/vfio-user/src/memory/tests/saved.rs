//! Memory that is taken apart and put together again.

use nix::unistd::pipe;

use super::*;

/// Through bytes, as on the way to another process.
fn move_on(memory: &Memory) -> Result<Memory, Errno> {
    let mut fds = Vec::new();
    let saved = memory.save(&mut fds).unwrap();
    let bytes = serde_json::to_vec(&saved).unwrap();
    let mut fds = fds.into_iter();
    let memory = Memory::restore(serde_json::from_slice(&bytes).unwrap(), &mut fds);
    assert_eq!(fds.count(), 0, "no descriptor is left over");
    memory
}

#[test]
fn maps_are_moved_with_one_descriptor_for_each_file() {
    let read_only = Access {
        read: true,
        write: false,
    };
    let (mut memory, file) = mapped(0, 4);
    for index in 1..100 {
        map(&mut memory, index * 8 * PAGE, 1, &file, index % 4);
    }
    map(&mut memory, 1 << 32, 2, &File::from(super::file(2)), 0);
    memory.map(1 << 40, PAGE, RW, None).unwrap();
    let fd = file.try_clone().unwrap().into();
    memory
        .map(1 << 41, PAGE, read_only, Some((fd, 2 * PAGE)))
        .unwrap();
    let mut fds = Vec::new();
    memory.save(&mut fds).unwrap();
    assert_eq!(fds.len(), 3, "one file is also mapped for reading only");
    let mut moved = move_on(&memory).unwrap();
    write(&mut memory, 2 * PAGE, b"written before").unwrap();
    write(&mut memory, 1 << 32, b"other").unwrap();
    for iova in [2 * PAGE, 10 * 8 * PAGE, 1 << 41] {
        let mut back = [0; 14];
        read(&mut moved, iova, &mut back).unwrap();
        assert_eq!(&back, b"written before", "{iova:#x}");
    }
    let mut back = [0; 5];
    read(&mut moved, 1 << 32, &mut back).unwrap();
    assert_eq!(&back, b"other");
    let denied = Err(AccessError::Denied { iova: 1 << 41 });
    assert_eq!(write(&mut moved, 1 << 41, &[0]), denied);
    assert_eq!(
        read(&mut moved, 1 << 40, &mut [0]),
        Err(AccessError::Remote {
            iova: 1 << 40,
            errno: Errno::ENOTCONN
        })
    );
    let unmapped = Err(AccessError::Unmapped { iova: 4 * PAGE });
    assert_eq!(read(&mut moved, 4 * PAGE, &mut [0]), unmapped);
}

#[test]
fn what_is_lost_stays_lost() {
    let (mut memory, noticed) = mapped(0, 2);
    noticed.set_len(0).unwrap();
    read(&mut memory, 0, &mut [0]).unwrap_err();
    noticed.set_len(2 * PAGE).unwrap();
    let unnoticed = File::from(super::file(2));
    map(&mut memory, 2 * PAGE, 2, &unnoticed, 0);
    unnoticed.set_len(PAGE).unwrap();
    let mut moved = move_on(&move_on(&memory).unwrap()).unwrap();
    for iova in [0, 3 * PAGE] {
        let lost = Err(AccessError::Lost { iova });
        assert_eq!(read(&mut moved, iova, &mut [0]), lost);
        assert_eq!(write(&mut moved, iova, &[0]), lost);
    }
    assert_eq!(moved.unmap(0, 2 * PAGE), Ok(2 * PAGE));
    map(&mut moved, 0, 2, &noticed, 0);
    read(&mut moved, 0, &mut [0]).unwrap();
}

#[test]
fn the_log_of_writes_goes_on() {
    let (mut memory, _file) = mapped(0, 64);
    let ranges = [LoggingRange {
        iova: 0,
        size_bytes: 60 * PAGE,
    }];
    memory.start_dirty_log(4096, &ranges).unwrap();
    for page in [0, 1, 2, 40, 59, 63] {
        write(&mut memory, page * PAGE, &[1]).unwrap();
    }
    let mut moved = move_on(&memory).unwrap();
    for page in [7, 62] {
        write(&mut moved, page * PAGE, &[1]).unwrap();
    }
    let mut out = Vec::new();
    moved.report_dirty(0, 64 * PAGE, 4096, &mut out).unwrap();
    let pages = [0, 1, 2, 7, 40, 59];
    let expected = pages.iter().fold(0u64, |word, page| word | 1 << page);
    assert_eq!(out, expected.to_ne_bytes());
}

#[test]
fn a_log_that_gave_up_still_says_that_everything_was_written() {
    let mut memory = Memory::default();
    memory.start_dirty_log(4096, &[]).unwrap();
    let log = memory.dirty.as_mut().unwrap();
    for index in 0..=8192u64 {
        log.mark(index << 27, 1);
    }
    let mut moved = move_on(&memory).unwrap();
    let mut out = Vec::new();
    moved.report_dirty(1 << 50, PAGE, 4096, &mut out).unwrap();
    assert_eq!(out, 1u64.to_ne_bytes());
}

#[test]
fn what_no_client_could_have_made_is_refused() {
    let map = |iova: u64, size: u64, backing: &str| {
        format!(
            r#"{{"iova":{iova},"size_bytes":{size},"read":true,"write":true,"backing":{backing}}}"#
        )
    };
    let file = r#"{"File":{"file":0,"offset_bytes":0}}"#;
    let log = |page_bytes: u64, ranges: &str, chunks: &str| {
        format!(
            r#"{{"page_bytes":{page_bytes},"ranges":{ranges},"chunks":{chunks},"everything":false}}"#
        )
    };
    // 4096 bytes of zeros.
    let zeros = format!("{}==", "A".repeat(5462));
    let chunk = |index: u64| format!(r#"[[{index},"{zeros}"]]"#);
    let too_many: Vec<_> = (0..=8192)
        .map(|index| format!(r#"[{index},"{zeros}"]"#))
        .collect();
    let restore = |maps: &[String], dirty: &str, files: Vec<OwnedFd>| {
        let text = format!(
            r#"{{"file_count":1,"maps":[{}],"dirty":{dirty}}}"#,
            maps.join(",")
        );
        let saved = serde_json::from_str(&text).unwrap();
        Memory::restore(saved, &mut files.into_iter()).map(drop)
    };
    let files = || vec![super::file(2)];
    assert_eq!(restore(&[map(0, PAGE, file)], "null", files()), Ok(()));
    for (maps, dirty, files, expected) in [
        (
            vec![map(0, PAGE, file)],
            "null".into(),
            vec![],
            Errno::EINVAL,
        ),
        (vec![map(0, 0, file)], "null".into(), files(), Errno::EINVAL),
        (
            vec![map(u64::MAX, 2, r#""Remote""#)],
            "null".into(),
            files(),
            Errno::EINVAL,
        ),
        (
            vec![map(0, PAGE, r#""Remote""#), map(1, PAGE, file)],
            "null".into(),
            files(),
            Errno::EEXIST,
        ),
        (
            vec![map(0, PAGE, r#"{"File":{"file":1,"offset_bytes":0}}"#)],
            "null".into(),
            files(),
            Errno::EINVAL,
        ),
        (
            vec![map(0, PAGE, r#"{"File":{"file":0,"offset_bytes":1}}"#)],
            "null".into(),
            files(),
            Errno::EINVAL,
        ),
        (
            vec![map(
                0,
                PAGE,
                r#"{"File":{"file":0,"offset_bytes":18446744073709551615}}"#,
            )],
            "null".into(),
            files(),
            Errno::EINVAL,
        ),
        (
            vec![map(0, PAGE, file)],
            "null".into(),
            vec![pipe().unwrap().0],
            Errno::EINVAL,
        ),
        (vec![], log(4097, "[]", "[]"), files(), Errno::EINVAL),
        (vec![], log(0, "[]", "[]"), files(), Errno::EINVAL),
        (vec![], log(4096, "[[2,1]]", "[]"), files(), Errno::EINVAL),
        (
            vec![],
            log(4096, "[]", r#"[[0,"AAAA"]]"#),
            files(),
            Errno::EINVAL,
        ),
        (
            vec![],
            log(4096, "[]", &chunk(1 << 37)),
            files(),
            Errno::EINVAL,
        ),
        (
            vec![],
            log(4096, "[]", &format!("[{}]", too_many.join(","))),
            files(),
            Errno::EINVAL,
        ),
    ] {
        assert_eq!(
            restore(&maps, &dirty, files),
            Err(expected),
            "{maps:?} {dirty:.200}"
        );
    }
    let last = log(4096, "[]", &chunk((1 << 37) - 1));
    assert_eq!(restore(&[], &last, files()), Ok(()));
}

#[test]
fn a_log_with_many_holes_is_no_longer_than_any_other() {
    let mut memory = Memory::default();
    memory.start_dirty_log(PAGE, &[]).unwrap();
    let log = memory.dirty.as_mut().unwrap();
    // Every other page of 16 GiB.
    for page in (0..1 << 22).step_by(2) {
        log.mark(page * PAGE, 1);
    }
    let saved = memory.save(&mut Vec::new()).unwrap();
    let text = serde_json::to_string(&saved).unwrap();
    assert!(text.len() < 1 << 20, "{} bytes", text.len());
    let mut again = Memory::restore(saved, &mut std::iter::empty()).unwrap();
    let mut bits = Vec::new();
    again.report_dirty(0, PAGE * 64, PAGE, &mut bits).unwrap();
    assert_eq!(bits, [0x55; 8]);
}
