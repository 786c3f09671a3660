//! What `make demo` and `make fleet` show, to their end: a plugin swapped under load, and sums that agree.

use std::process::Command;

use sluice_tests::binary;

fn shown(more: &[&str]) {
    // Beside the broker's binary, built with it.
    let demo = binary::sluice().with_file_name(format!("sluice-demo{}", std::env::consts::EXE_SUFFIX));
    let ended = Command::new(demo).args(more).env("DEMO_ONCE", "1").env_remove("SLUICE_TEST_STORAGE").output();
    let ended = ended.expect("the demo starts");
    let (said, complained) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    // Last, behind the logs of all servers, what it ended of.
    let panicked: Vec<&str> = complained.lines().skip_while(|line| !line.contains("panicked at")).take(2).collect();
    assert!(
        ended.status.success() && said.contains("The sums agree"),
        "{complained}{said}{}: {}",
        ended.status,
        panicked.join(" ")
    );
}

#[test]
fn the_demo_ends_with_sums_that_agree() {
    shown(&[]);
}

#[test]
fn a_fleet_is_shown_losing_a_broker_and_nothing_else() {
    shown(&["--fleet"]);
}
