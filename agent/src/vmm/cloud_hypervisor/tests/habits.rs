//! A VMM that is slow, breaks off, refuses and lies.

use std::time::Duration;

use tests::cloud_hypervisor::Habit;

use super::super::{ADD, REMOVE};
use super::{Bench, LIMIT, next, plug};
use crate::vmm::{Error, Event};

fn refusal() -> Habit {
    let body = r#"["Error from API", "The VM is migrating"]"#;
    Habit::Refuse(500, body.to_owned())
}

#[tokio::test]
async fn a_refusal_is_told_in_the_vmms_words_and_changes_nothing() {
    let bench = Bench::new(|_, _| {});
    let vm = bench.vm().await;
    bench.vmm().habit(ADD, refusal());
    let refused = vm.plug(&plug("nic0")).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the VMM refused vm.add-user-device: Error from API: The VM is migrating"
    );
    assert_eq!(vm.find("nic0").await.unwrap(), None);
    vm.plug(&plug("nic0")).await.unwrap();
    bench.vmm().habit(REMOVE, refusal());
    let refused = vm.unplug("nic0", LIMIT).await.unwrap_err();
    assert!(matches!(refused, Error::Refused { .. }), "{refused:?}");
    assert!(vm.find("nic0").await.unwrap().is_some());
    vm.unplug("nic0", LIMIT).await.unwrap();
}

#[tokio::test]
async fn what_breaks_off_is_not_certain_and_can_be_asked_again() {
    let bench = Bench::new(|_, _| {});
    let vm = bench.vm().await;
    for (number, habit) in [Habit::Break, Habit::Endless].into_iter().enumerate() {
        let nic = plug(&format!("nic{number}"));
        bench.vmm().habit(ADD, habit.clone());
        let lost = vm.plug(&nic).await;
        assert!(matches!(lost, Err(Error::Unanswered { .. })), "{lost:?}");
        assert!(vm.find(&nic.id).await.unwrap().is_some());
        vm.plug(&nic).await.unwrap();
        bench.vmm().habit(REMOVE, habit);
        let lost = vm.unplug(&nic.id, LIMIT).await;
        assert!(matches!(lost, Err(Error::Unanswered { .. })), "{lost:?}");
        assert_eq!(vm.find(&nic.id).await.unwrap(), None);
    }
    bench.vmm().habit("vm.info", Habit::Break);
    let lost = vm.find("nic0").await;
    assert!(matches!(lost, Err(Error::Unanswered { .. })), "{lost:?}");
}

#[tokio::test]
async fn a_yes_that_is_none_is_no_plug() {
    let bench = Bench::new(|_, _| {});
    let vm = bench.vm().await;
    bench.vmm().habit(ADD, Habit::Lie);
    let error = vm.plug(&plug("nic0")).await.unwrap_err();
    assert!(error.to_string().contains("has no such device"), "{error}");
    vm.plug(&plug("nic0")).await.unwrap();
    // It is asked again, and then it does it.
    bench.vmm().habit(REMOVE, Habit::Lie);
    vm.unplug("nic0", LIMIT).await.unwrap();
    assert_eq!(bench.vmm().devices(), [""; 0]);
}

#[tokio::test]
async fn a_plug_goes_on_when_its_caller_does_not_wait_and_others_wait_for_it() {
    let bench = Bench::new(|_, _| {});
    let vm = bench.vm().await;
    let slow = Habit::Slow(Duration::from_millis(700));
    bench.vmm().habit(ADD, slow);
    let nic = plug("nic0");
    let given_up = tokio::time::timeout(Duration::from_millis(200), vm.plug(&nic)).await;
    given_up.unwrap_err();
    // Its answer comes after that of what was asked before.
    assert!(vm.find("nic0").await.unwrap().is_some());
}

#[tokio::test]
async fn the_end_of_a_vmm_is_told_and_the_next_one_is_another() {
    let mut bench = Bench::new(|_, _| {});
    let vm = bench.vm().await;
    vm.plug(&plug("nic0")).await.unwrap();
    let mut events = vm.events();
    bench.start();
    assert_eq!(next(&mut events).await, Event::Gone);
    for error in [
        vm.plug(&plug("nic0")).await.unwrap_err(),
        vm.unplug("nic0", LIMIT).await.unwrap_err(),
        vm.find("nic0").await.unwrap_err(),
        vm.facts().await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::Gone { .. }), "{error:?}");
    }
    let next_one = bench.vm().await;
    assert_eq!(next_one.find("nic0").await.unwrap(), None);
}

#[tokio::test]
async fn a_vmm_that_dies_in_the_middle_of_a_call_is_gone() {
    let mut bench = Bench::new(|_, _| {});
    let vm = bench.vm().await;
    bench.vmm().habit(ADD, Habit::Slow(LIMIT));
    let nic = plug("nic0");
    let vmm = bench.vmm.take().unwrap();
    let (plugged, ()) = tokio::join!(vm.plug(&nic), async {
        while !vmm.calls().iter().any(|it| it == ADD) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::task::spawn_blocking(move || drop(vmm))
            .await
            .unwrap();
    });
    assert!(matches!(plugged, Err(Error::Gone { .. })), "{plugged:?}");
}
