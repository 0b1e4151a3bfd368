use std::collections::BTreeMap;

use super::*;

fn entry(number: u64) -> Entry {
    Entry {
        due: WallMs(number),
        location: Location::new(number as u32 >> 4, 8, 8),
        topic: TopicId(1),
        block: number as u32,
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % end
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

fn table_of(sequences: impl IntoIterator<Item = u64>) -> EventTable {
    let mut table = EventTable::default();
    for sequence in sequences {
        assert_eq!(table.insert(Sequence(sequence), entry(sequence)), None);
    }
    table
}

/// Bytes of an event, without the places for leaves, which are there once.
fn event_size_bytes(table: &EventTable) -> usize {
    let once = LEAVES * size_of::<Option<Box<Leaf>>>() + table.spare.len() * PAGE_LEN * size_of::<Entry>();
    (table.memory_bytes() - once).div_ceil(table.len())
}

/// That the table holds this and nothing else, that it counts its bytes, and that its pages are where they are looked for.
fn check(table: &EventTable, model: &BTreeMap<Sequence, Entry>) {
    assert_eq!(table.len(), model.len());
    assert!(table.iter().map(|(s, e)| (s, *e)).eq(model.iter().map(|(s, e)| (*s, *e))));
    let in_leaves = || table.leaves.iter().flatten();
    let pages = in_leaves().flat_map(|leaf| leaf.pages.iter().flatten()).chain(table.elsewhere.values());
    assert_eq!(pages.map(|page| page.memory_bytes()).sum::<usize>(), table.pages_size_bytes);
    assert_eq!(in_leaves().count(), table.leaf_count);
    for leaf in in_leaves() {
        assert_eq!(leaf.pages.iter().flatten().count(), leaf.page_count);
        let is_newest = leaf.number == table.newest >> LEAF_BITS;
        assert!(leaf.page_count > LEAF_PAGES_FEW || is_newest);
    }
    assert!(table.spare.iter().all(|room| room.capacity() == PAGE_LEN));
}

/// Random inserts, replacements and removals within a window that moves up by one in `pace` steps.
fn compare_with_a_map(seed: u64, steps: u64, window: u64, pace: u64, inserts_in_4: u64) {
    let mut table = EventTable::default();
    let mut model = BTreeMap::new();
    let mut random = Random(seed);
    for step in 0..steps {
        let sequence = Sequence(1 + random.below(window) + step / pace);
        if random.below(4) < inserts_in_4 {
            assert_eq!(table.insert(sequence, entry(step)), model.insert(sequence, entry(step)));
        } else {
            assert_eq!(table.remove(sequence), model.remove(&sequence));
        }
        let sequence = Sequence(1 + random.below(window) + step / pace);
        assert_eq!(table.get(sequence), model.get(&sequence));
        assert_eq!(table.get_mut(sequence), model.get_mut(&sequence));
        if step % (steps / 16) == 0 {
            check(&table, &model);
        }
    }
    check(&table, &model);
    let mut sequences: Vec<_> = model.keys().copied().collect();
    random.shuffle(&mut sequences);
    for (nth, sequence) in sequences.iter().enumerate() {
        assert_eq!(table.remove(*sequence), model.remove(sequence));
        assert_eq!(table.remove(*sequence), None);
        if nth % (sequences.len() / 8 + 1) == 0 {
            check(&table, &model);
        }
    }
    check(&table, &model);
}

#[test]
fn the_table_behaves_like_an_ordered_map_when_dense() {
    compare_with_a_map(7, 60_000, 9_000, 50, 3);
}

#[test]
fn the_table_behaves_like_an_ordered_map_when_half_empty() {
    compare_with_a_map(8, 60_000, 40_000, 1, 2);
}

#[test]
fn the_table_behaves_like_an_ordered_map_when_few_are_left() {
    compare_with_a_map(9, 60_000, 3_000, 3, 1);
}

#[test]
fn the_table_behaves_like_an_ordered_map_over_more_than_its_leaves() {
    let reach = (LEAVES * LEAF_LEN * PAGE_LEN) as u64;
    compare_with_a_map(10, 50_000, 5 * reach, 1, 3);
}

#[test]
fn the_table_behaves_like_an_ordered_map_when_publishes_go_up_and_what_was_left_out_is_loaded_back() {
    let mut table = EventTable::default();
    let mut model = BTreeMap::new();
    let mut random = Random(11);
    let (mut left_out, mut kept) = (Vec::new(), Vec::new());
    for next in 1..120_000u64 {
        let sequence = Sequence(next);
        if random.below(20) < [20, 10, 1, 19][next as usize / 20_000 % 4] {
            assert_eq!(table.insert(sequence, entry(next)), model.insert(sequence, entry(next)));
            kept.push(sequence);
        } else {
            left_out.push(sequence);
        }
        if random.below(3) == 0 && !left_out.is_empty() {
            let sequence = left_out.swap_remove(random.below(left_out.len() as u64) as usize);
            assert_eq!(table.insert(sequence, entry(next)), model.insert(sequence, entry(next)));
            kept.push(sequence);
        }
        if kept.len() > 60_000 {
            let sequence = kept.swap_remove(random.below(60_000) as usize);
            assert_eq!(table.remove(sequence), model.remove(&sequence));
        }
        if next % 30_000 == 0 {
            check(&table, &model);
        }
    }
    check(&table, &model);
}

#[test]
fn a_dense_event_costs_its_entry() {
    let table = table_of(1 << 30..(1 << 30) + 400_000);
    let spent = table.memory_bytes() as f64 / table.len() as f64;
    assert!(spent < 24.3, "{spent} bytes");
}

#[test]
fn one_event_in_40_costs_at_most_32_bytes_however_it_came_to_be_alone() {
    const SPAN: u64 = 800_000;
    let mut random = Random(12);
    let mut kept: Vec<_> = (0..SPAN).filter(|_| random.below(40) == 0).collect();
    let published = table_of(kept.iter().copied());
    assert!(event_size_bytes(&published) <= 32, "{} bytes", event_size_bytes(&published));
    let mut survived = table_of(0..SPAN);
    let mut gone: Vec<_> = (0..SPAN).filter(|sequence| kept.binary_search(sequence).is_err()).collect();
    random.shuffle(&mut gone);
    for sequence in gone {
        survived.remove(Sequence(sequence));
    }
    assert!(event_size_bytes(&survived) <= 32, "{} bytes", event_size_bytes(&survived));
    random.shuffle(&mut kept);
    let loaded = table_of([SPAN].into_iter().chain(kept));
    assert!(event_size_bytes(&loaded) <= 32, "{} bytes", event_size_bytes(&loaded));
}

#[test]
fn a_lone_event_costs_at_most_250_bytes_at_any_distance() {
    for distance in [1_024, 10_000, 1_000_000, 1 << 40] {
        let newest = 2_000 * distance;
        let published = table_of((0..2_000).map(|number| number * distance));
        let loaded = table_of((0..=2_000).map(|number| newest - number * distance));
        for table in [published, loaded] {
            let page = PAGE_LEN * size_of::<Entry>();
            let spent = event_size_bytes(&table) - page.div_ceil(table.len());
            assert!(spent <= 250, "{spent} bytes at a distance of {distance}");
        }
    }
}

#[test]
fn half_of_the_events_gone_gives_memory_back() {
    let mut random = Random(13);
    let mut sequences: Vec<_> = (0..200_000).collect();
    let mut table = table_of(sequences.iter().copied());
    random.shuffle(&mut sequences);
    for gone in sequences.chunks(10_000) {
        for sequence in gone {
            table.remove(Sequence(*sequence));
        }
        if table.len() > 10_000 {
            assert!(event_size_bytes(&table) <= 50, "{} bytes of {}", event_size_bytes(&table), table.len());
        }
    }
    assert_eq!((table.len(), table.iter().count()), (0, 0));
    assert!(table.memory_bytes() < 300_000, "{} bytes", table.memory_bytes());
}

#[test]
fn an_event_far_below_the_others_takes_no_memory_for_the_distance() {
    let mut table = table_of(1 << 50..(1 << 50) + 5_000);
    let before = table.memory_bytes();
    assert_eq!(table.insert(Sequence(3), entry(3)), None);
    assert!(table.memory_bytes() <= before + 250, "{} after {before} bytes", table.memory_bytes());
    assert_eq!(table.iter().next(), Some((Sequence(3), &entry(3))));
    assert_eq!(table.remove(Sequence(3)), Some(entry(3)));
    assert_eq!(table.memory_bytes(), before);
}

#[test]
fn a_page_that_fills_and_empties_again_is_not_made_anew() {
    let mut table = table_of([77]);
    table.remove(Sequence(77));
    let before = table.memory_bytes();
    for sequence in (80..1_000).rev() {
        table.insert(Sequence(sequence), entry(sequence));
        assert_eq!(table.remove(Sequence(sequence)), Some(entry(sequence)));
        assert_eq!(table.memory_bytes(), before);
    }
}
