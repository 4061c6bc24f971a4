//! The disk is full, or can't be written to: who asks is told so with the cure, and nothing that was promised is lost.

use std::path::Path;

use nix::mount::MsFlags;
use tests::require;

use super::{
    mounts::{in_own_mounts, mount_at},
    *,
};

/// Room for the store, for what a few devices have in a run directory, and little more.
const SIZE: &str = "size=4m";

/// A disk of its own at this path.
fn small_disk(path: &Path) {
    fs::create_dir_all(path).unwrap();
    mount_at("none", path, "tmpfs", MsFlags::empty(), SIZE);
}

/// Makes the disk at this path one that can be read only, or one that can be written again.
fn set_read_only(path: &Path, read_only: bool) {
    let mut flags = MsFlags::MS_REMOUNT;
    flags.set(MsFlags::MS_RDONLY, read_only);
    mount_at("none", path, "tmpfs", flags, SIZE);
}

/// Leaves no room on the disk at this path, until the file is removed.
fn fill(disk: &Path) -> std::path::PathBuf {
    let path = disk.join("filler");
    let mut file = fs::File::create(&path).unwrap();
    for size in [4096, 1] {
        let block = vec![0_u8; size];
        while std::io::Write::write_all(&mut file, &block).is_ok() {}
    }
    path
}

/// What every call that has to write is answered.
async fn refusals(world: &mut World) -> Vec<Status> {
    let devices = world.devices();
    let [first, second] = &mut world.callers[..] else {
        panic!("two callers");
    };
    let calls = [
        first.call(Op::Update("full".to_owned(), "down")),
        first.call(Op::Delete),
        second.call(Op::Create("full".to_owned())),
    ];
    let [update, delete, create] = calls;
    vec![
        first.send(&devices, &update).await.unwrap_err(),
        first.send(&devices, &delete).await.unwrap_err(),
        second.send(&devices, &create).await.unwrap_err(),
    ]
}

async fn create_first(world: &mut World) {
    let devices = world.devices();
    let caller = &mut world.callers[0];
    let call = caller.call(Op::Create("a".to_owned()));
    caller.make(&devices, call).await.unwrap();
}

/// Does everything with every device.
async fn work(world: &mut World) {
    let devices = world.devices();
    for caller in &mut world.callers {
        let ops = [
            Op::Delete,
            Op::Create("b".to_owned()),
            Op::Update("c".to_owned(), "down"),
            Op::Reset,
        ];
        for op in ops {
            if op != Op::Delete || caller.known.is_some() {
                let call = caller.call(op);
                caller.make(&devices, call).await.unwrap();
            }
        }
    }
    world.check().await.unwrap();
}

#[test]
fn a_full_state_directory_refuses_changes_until_there_is_room() {
    require!(Root);
    in_own_mounts(|| async {
        let mut world = World::new(&["nic0", "nic1"]);
        let state = world.host.path("state");
        small_disk(&state);
        world.start(&[]).await.unwrap();
        create_first(&mut world).await;
        let filler = fill(&state);
        for status in refusals(&mut world).await {
            assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
            let reason = status.get_details_error_info().unwrap().reason;
            assert_eq!(reason, "STORAGE_FULL", "{status:?}");
            let path = state.display().to_string();
            assert!(status.message().contains(&path), "{}", status.message());
        }
        world.check().await.unwrap();
        fs::remove_file(filler).unwrap();
        work(&mut world).await;
        world.finish().await;
    });
}

#[test]
fn a_state_directory_that_can_not_be_written_refuses_changes_until_it_can() {
    require!(Root);
    in_own_mounts(|| async {
        let mut world = World::new(&["nic0", "nic1"]);
        let state = world.host.path("state");
        small_disk(&state);
        world.start(&[]).await.unwrap();
        create_first(&mut world).await;
        // The agent has its files open for writing, which keeps the disk from being remounted: it has to be stopped.
        world.host.end_agent(Signal::SIGKILL);
        set_read_only(&state, true);
        let output = world.host.command().output().unwrap();
        assert!(!output.status.success());
        let told = String::from_utf8(output.stderr).unwrap();
        for word in [&*state.display().to_string(), "read-only", "--state-dir"] {
            assert!(told.contains(word), "{word}: {told}");
        }
        set_read_only(&state, false);
        world.start(&[]).await.unwrap();
        work(&mut world).await;
        world.finish().await;
    });
}

#[test]
fn a_full_run_directory_refuses_devices_until_there_is_room() {
    require!(Root);
    in_own_mounts(|| async {
        let mut world = World::new(&["nic0", "nic1"]);
        let run = world.host.path("run");
        small_disk(&run);
        world.start(&[]).await.unwrap();
        create_first(&mut world).await;
        let filler = fill(&run);
        let devices = world.devices();
        let call = world.callers[1].call(Op::Create("full".to_owned()));
        let status = world.callers[1].send(&devices, &call).await.unwrap_err();
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        let reason = status.get_details_error_info().unwrap().reason;
        assert_eq!(reason, "STORAGE_FULL", "{status:?}");
        let path = run.display().to_string();
        assert!(status.message().contains(&path), "{}", status.message());
        world.check().await.unwrap();
        // What has its directory already can be changed.
        let caller = &mut world.callers[0];
        let call = caller.call(Op::Update("b".to_owned(), "down"));
        caller.make(&devices, call).await.unwrap();
        world.host.end_agent(Signal::SIGKILL);
        world.start(&[]).await.unwrap();
        world.check().await.unwrap();
        fs::remove_file(filler).unwrap();
        work(&mut world).await;
        world.finish().await;
    });
}
