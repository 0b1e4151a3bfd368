use super::*;

const S: u64 = NS_PER_S;
/// 2026-01-01, in ns.
const REAL: u64 = 1_767_225_600 * S;
const BOOT: u64 = 1_000 * S;

fn at(boot_ns: u64, real_ns: u64) -> Reading {
    Reading { boot_ns, real_ns }
}

/// A machine whose real-time clock can be moved, and the clock under test on it.
struct Machine {
    boot_ns: u64,
    real_ns: u64,
    synced: bool,
    clock: WallClock,
    newest: WallMs,
}

impl Machine {
    fn new() -> Self {
        let clock = WallClock::start(at(BOOT, REAL), None, false).unwrap();
        Machine { boot_ns: BOOT, real_ns: REAL, synced: false, clock, newest: WallMs(0) }
    }

    /// Lets time pass in the node's comparisons; checks that the answers never decrease.
    fn run(&mut self, ns: u64) -> WallMs {
        let end = self.boot_ns + ns;
        while self.boot_ns < end {
            let step = COMPARE_EVERY_NS.min(end - self.boot_ns);
            self.boot_ns += step;
            self.real_ns += step;
            let wall = self.clock.advance(at(self.boot_ns, self.real_ns), self.synced);
            assert!(wall >= self.newest, "{wall} after {}", self.newest);
            self.newest = wall;
        }
        self.newest
    }

    fn step_real(&mut self, ns: i64) {
        self.real_ns = self.real_ns.checked_add_signed(ns).unwrap();
    }

    /// Wall minus real, in ms.
    fn ahead_ms(&self) -> i64 {
        self.newest.0 as i64 - (self.real_ns / NS_PER_MS) as i64
    }
}

#[test]
fn a_steady_machine_is_followed_exactly() {
    let mut machine = Machine::new();
    machine.run(3_600 * S);
    assert_eq!(machine.ahead_ms(), 0);
    assert_eq!(machine.clock.status(), ClockStatus::Following);
}

#[test]
fn a_small_step_forward_is_caught_up_with_at_five_percent() {
    let mut machine = Machine::new();
    machine.run(S);
    machine.step_real(400_000_000);
    machine.run(4 * S);
    assert_eq!(machine.ahead_ms(), -200);
    assert!(matches!(machine.clock.status(), ClockStatus::Slewing { .. }));
    machine.run(4 * S + COMPARE_EVERY_NS);
    assert_eq!(machine.ahead_ms(), 0);
    assert_eq!(machine.clock.status(), ClockStatus::Following);
}

#[test]
fn one_comparison_of_a_slew_moves_the_wall_by_at_most_its_resolution() {
    let mut machine = Machine::new();
    machine.step_real(500_000_000);
    let mut last = machine.run(COMPARE_EVERY_NS);
    for _ in 0..100 {
        let wall = machine.run(COMPARE_EVERY_NS);
        assert!(wall.0 - last.0 <= COMPARE_EVERY_NS / NS_PER_MS + 1);
        last = wall;
    }
}

#[test]
fn the_largest_slewed_difference_is_half_a_second() {
    for (step_ns, jumped) in [(499_000_000, false), (501_000_000, true)] {
        let mut machine = Machine::new();
        machine.step_real(step_ns);
        machine.run(COMPARE_EVERY_NS);
        assert_eq!(matches!(machine.clock.status(), ClockStatus::Jumped { .. }), jumped, "{step_ns} ns");
    }
}

#[test]
fn an_hour_forward_is_reported_and_not_followed_while_the_kernel_is_unsure() {
    let mut machine = Machine::new();
    machine.run(S);
    machine.step_real(3_600 * S as i64);
    machine.run(3_600 * S);
    assert_eq!(machine.ahead_ms(), -3_600_000);
    assert_eq!(machine.clock.status(), ClockStatus::Jumped { ahead_ms: 3_600_000 });
}

#[test]
fn an_hour_forward_is_followed_after_a_synchronised_minute_and_not_before() {
    let mut machine = Machine::new();
    machine.step_real(3_600 * S as i64);
    machine.synced = true;
    machine.run(TRUST_AFTER_NS);
    assert_eq!(machine.ahead_ms(), -3_600_000);
    machine.run(COMPARE_EVERY_NS);
    assert_eq!(machine.ahead_ms(), 0);
    assert_eq!(machine.clock.status(), ClockStatus::Following);
}

#[test]
fn a_lost_synchronisation_or_a_second_jump_starts_the_minute_again() {
    let mut machine = Machine::new();
    machine.step_real(3_600 * S as i64);
    machine.synced = true;
    machine.run(50 * S);
    machine.synced = false;
    machine.run(S);
    machine.synced = true;
    machine.run(50 * S);
    assert_eq!(machine.ahead_ms(), -3_600_000, "after a lost synchronisation");
    machine.step_real(60 * S as i64);
    machine.run(50 * S);
    assert_eq!(machine.ahead_ms(), -3_660_000, "after a second jump");
    machine.run(11 * S);
    assert_eq!(machine.ahead_ms(), 0);
}

#[test]
fn an_hour_back_changes_nothing_but_the_report() {
    let mut machine = Machine::new();
    machine.run(S);
    machine.step_real(-3_600 * S as i64);
    let before = machine.newest;
    assert_eq!(machine.run(10 * S).0 - before.0, 10_000);
    assert_eq!(machine.clock.status(), ClockStatus::Behind { behind_ms: 3_600_000 });
    machine.step_real(3_600 * S as i64);
    machine.run(S);
    assert_eq!(machine.ahead_ms(), 0);
    assert_eq!(machine.clock.status(), ClockStatus::Following);
}

#[test]
fn a_step_back_during_a_slew_stops_it() {
    let mut machine = Machine::new();
    machine.step_real(400_000_000);
    machine.run(2 * S);
    assert_eq!(machine.ahead_ms(), -300);
    machine.step_real(-400_000_000);
    let before = machine.newest;
    assert_eq!(machine.run(10 * S).0 - before.0, 10_000);
    assert_eq!(machine.ahead_ms(), 100);
}

#[test]
fn a_minute_of_suspend_passes_on_the_wall_too() {
    let mut machine = Machine::new();
    machine.run(S);
    machine.boot_ns += 60 * S;
    machine.real_ns += 60 * S;
    machine.run(COMPARE_EVERY_NS);
    assert_eq!(machine.ahead_ms(), 0);
    assert_eq!(machine.clock.status(), ClockStatus::Following);
}

#[test]
fn a_minute_of_freeze_that_the_boot_clock_missed_is_a_jump() {
    let mut machine = Machine::new();
    machine.run(S);
    machine.step_real(60 * S as i64);
    machine.run(COMPARE_EVERY_NS);
    assert_eq!(machine.clock.status(), ClockStatus::Jumped { ahead_ms: 60_000 });
}

#[test]
fn a_long_gap_between_comparisons_slews_no_further_than_real_time() {
    let mut machine = Machine::new();
    machine.step_real(400_000_000);
    machine.boot_ns += 3_600 * S;
    machine.real_ns += 3_600 * S;
    machine.run(COMPARE_EVERY_NS);
    assert_eq!(machine.ahead_ms(), 0);
}

#[test]
fn a_start_in_1970_goes_on_from_the_log_and_catches_up_when_synchronised() {
    let leader = WallMs(REAL / NS_PER_MS);
    let clock = WallClock::start(at(5 * S, 5 * S), Some(leader), false).unwrap();
    let mut machine = Machine { boot_ns: 5 * S, real_ns: 5 * S, synced: false, clock, newest: WallMs(0) };
    assert_eq!(machine.run(10 * S), leader.plus_ms(10_000));
    assert!(matches!(machine.clock.status(), ClockStatus::Behind { .. }));
    machine.real_ns = REAL + 86_400 * S;
    machine.synced = true;
    machine.run(TRUST_AFTER_NS + COMPARE_EVERY_NS);
    assert_eq!(machine.ahead_ms(), 0);
}

#[test]
fn a_start_far_ahead_of_the_log_asks_for_a_confirmation() {
    let real = WallMs(REAL / NS_PER_MS);
    let month = WallMs(real.0 - START_AHEAD_MS_MAX);
    assert!(WallClock::start(at(BOOT, REAL), Some(month), false).is_ok());
    let older = WallMs(month.0 - 1);
    let refused = WallClock::start(at(BOOT, REAL), Some(older), false).unwrap_err();
    assert_eq!(refused, StartAhead { real, leader: older });
    assert!(refused.to_string().contains("30 days"), "{refused}");
    let mut clock = WallClock::start(at(BOOT, REAL), Some(older), true).unwrap();
    assert_eq!(clock.advance(at(BOOT, REAL), false), real);
}

#[test]
fn a_machine_set_before_its_own_boot_still_reads() {
    let mut clock = WallClock::start(at(BOOT, 0), None, false).unwrap();
    assert_eq!(clock.advance(at(BOOT + S, S), false), WallMs(1_000));
}

#[test]
fn a_boot_reading_out_of_order_does_not_take_the_wall_back() {
    let mut clock = WallClock::start(at(BOOT, REAL), None, false).unwrap();
    let late = clock.advance(at(BOOT + 2 * S, REAL + 2 * S), false);
    assert!(clock.advance(at(BOOT + S, REAL + S), false) >= late);
}

#[test]
fn random_machines_never_take_the_wall_back_nor_run_it_ahead_of_every_real_time_seen() {
    // A multiplicative generator is enough to shake the rules, and its sequence is the same everywhere.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for _ in 0..50 {
        let mut machine = Machine::new();
        let mut ceiling_ns = REAL;
        for _ in 0..100 {
            let jump = [0, 1_000_000, 300_000_000, 700_000_000, 3_600 * S as i64][draw(5) as usize];
            machine.step_real(if draw(2) == 0 { jump } else { -jump });
            machine.synced = draw(2) == 0;
            // Long enough, now and then, for a jump to be followed.
            let minute = if draw(20) == 0 { 61 * S } else { 0 };
            let passes = draw(2 * S) + minute + 1;
            ceiling_ns = ceiling_ns.max(machine.real_ns) + passes;
            machine.run(passes);
            assert!(machine.newest.0 <= ceiling_ns / NS_PER_MS);
        }
    }
}

#[test]
fn threads_that_share_the_clock_agree_on_an_order() {
    let clock = NodeClock::start(None, false).unwrap();
    let newest = [const { AtomicU64::new(0) }; 2];
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..50_000 {
                    let before = [0, 1].map(|which: usize| newest[which].load(Ordering::SeqCst));
                    let now = clock.now();
                    assert!(now.mono.0 >= before[0] && now.wall.0 >= before[1]);
                    newest[0].fetch_max(now.mono.0, Ordering::SeqCst);
                    newest[1].fetch_max(now.wall.0, Ordering::SeqCst);
                }
            });
        }
    });
}

#[test]
fn the_shared_clock_starts_at_real_time_or_the_logs_whichever_is_later() {
    let real = WallMs(sys::real_ns() / NS_PER_MS);
    let now = NodeClock::start(None, false).unwrap().now();
    assert!(now.wall.0.abs_diff(real.0) < 10_000);
    let leader = real.plus_ms(5 * 86_400_000);
    assert!(NodeClock::start(Some(leader), false).unwrap().now().wall >= leader);
}

/// A machine on which a thread is stopped for `stop_ns` between any two readings.
struct Stopping {
    ns: u64,
    stop_ns: u64,
}

impl MachineClocks for Stopping {
    fn boot_ns(&mut self) -> u64 {
        self.ns += self.stop_ns;
        BOOT + self.ns
    }

    fn real_ns(&mut self) -> u64 {
        self.ns += self.stop_ns;
        REAL + self.ns
    }
}

#[test]
fn a_thread_that_is_stopped_between_two_readings_makes_the_clock_late_and_never_early() {
    let mut machine = Stopping { ns: 0, stop_ns: 7_000_000 };
    let mut clock = WallClock::start(Reading::take(&mut machine), None, false).unwrap();
    for _ in 0..1_000 {
        machine.ns += COMPARE_EVERY_NS;
        let wall = clock.advance(Reading::take(&mut machine), false);
        let real_ms = (REAL + machine.ns) / NS_PER_MS;
        assert!((real_ms - 7..=real_ms).contains(&wall.0), "{wall} at {real_ms}");
    }
    machine.stop_ns = 0;
    for _ in 0..100 {
        machine.ns += COMPARE_EVERY_NS;
        clock.advance(Reading::take(&mut machine), false);
    }
    assert_eq!(clock.advance(Reading::take(&mut machine), false).0, (REAL + machine.ns) / NS_PER_MS);
}
