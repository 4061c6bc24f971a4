//! Agents are killed at random steps, and device processes at random moments, while callers create, change and delete.
//!
//! `VFU_SEED` makes a run like an earlier one; each run prints its own. Which call is at which step when the agent dies
//! is the scheduler's to say, so the same seed makes a run that is alike, not one that is the same.

use std::time::SystemTime;

use tokio::task::JoinSet;

use super::*;

/// How often the agent is killed.
const DEATHS: u32 = 200;
/// An agent passes about so many steps when it finds what there is, and then in the calls of a moment.
const STEPS: u64 = 140;
const IDS: [&str; 4] = ["nic0", "nic1", "nic2", "nic3"];

/// Numbers that look random: xorshift64*.
#[derive(Debug, Clone)]
pub(super) struct Dice(u64);

impl Dice {
    /// Seeded by `VFU_SEED`, else by the time.
    pub(super) fn new() -> Self {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
        let seed = match std::env::var("VFU_SEED") {
            Ok(seed) => seed.parse().expect("VFU_SEED is a number"),
            Err(_) => u64::from(now.subsec_nanos()) ^ now.as_secs(),
        };
        eprintln!("VFU_SEED={seed}");
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Below `limit`.
    pub(super) fn roll(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }

    /// What this caller could ask for.
    fn op(&mut self, caller: &Caller) -> Op {
        let label = format!("label{}", self.roll(1000));
        let Some(known) = &caller.known else {
            return Op::Create(label);
        };
        match self.roll(10) {
            0..3 => Op::Update(label, ["up", "down"][usize::from(self.roll(2) == 0)]),
            3..6 if known.is_plugged => Op::Unplug,
            3 => Op::Reset,
            4 => Op::Restart,
            6..8 if !known.is_plugged => Op::Plug,
            _ => Op::Delete,
        }
    }
}

/// Calls until the agent is dead.
async fn work(mut caller: Caller, devices: Devices, mut dice: Dice) -> Caller {
    while live(&mut caller, &devices, &mut dice).await.is_ok() {}
    caller
}

async fn live(caller: &mut Caller, devices: &Devices, dice: &mut Dice) -> Result<(), Died> {
    caller.resume(devices).await?;
    if dice.roll(3) == 0 {
        caller.repeat(devices).await?;
    }
    let op = dice.op(caller);
    let call = caller.call(op);
    caller.make(devices, call).await
}

#[tokio::test]
async fn agents_killed_at_random_steps_lose_and_leak_nothing() {
    let mut dice = Dice::new();
    let mut world = World::with_vmm(&IDS);
    let mut checks = 0;
    for _ in 0..DEATHS {
        let after = (1 + dice.roll(STEPS)).to_string();
        if world.start(&[("VFU_DIE_AFTER", after)]).await.is_ok() && world.check().await.is_ok() {
            checks += 1;
            let mut work_under_way = JoinSet::new();
            for caller in std::mem::take(&mut world.callers) {
                let dice = Dice(dice.0 ^ dice.roll(u64::from(u32::MAX)) | 1);
                work_under_way.spawn(work(caller, world.devices(), dice));
            }
            world.callers = work_under_way.join_all().await;
        }
        world.bury();
    }
    world.start(&[]).await.unwrap();
    world.check().await.unwrap();
    world.resume().await.unwrap();
    assert!(
        checks > DEATHS / 4,
        "{checks} agents of {DEATHS} came to work"
    );
    world.finish().await;
}
