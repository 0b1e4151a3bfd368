//! One fault on files at rest.

use escapement_wal::format::{BlockHeader, EXTENT_ALIGN_BYTES, FRAME_SIZE_BYTES};
use escapement_wal::memory::Rng;

use super::scene::{Files, Scene};

const SUPER: &str = "SUPER";

/// What is done to the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// One to eight bits of a sector are others.
    FlippedBits,
    /// A sector of 512 bytes or 4 KiB is zero.
    ZeroedSector,
    /// Two places of one size have changed theirs, within a file or between two.
    SwappedPlaces,
    /// A place was written to another place, of the same file or another.
    MisdirectedWrite,
    /// Two files have each other's name.
    SwappedFiles,
    /// A file lies also under another's name.
    CopiedFile,
    /// A file is shorter.
    Truncated,
    /// A file is longer.
    Extended,
    /// A file is gone.
    Deleted,
    /// A file, or a place in it, is what it was at an earlier moment; also one that had been removed.
    Stale,
    /// `SUPER` and the newest segment are what they were at an earlier moment.
    StaleEnd,
    /// A run's file is that of an earlier run with the same number.
    StaleRun,
}

impl Kind {
    /// Every one.
    pub const ALL: [Kind; 12] = [
        Kind::FlippedBits,
        Kind::ZeroedSector,
        Kind::SwappedPlaces,
        Kind::MisdirectedWrite,
        Kind::SwappedFiles,
        Kind::CopiedFile,
        Kind::Truncated,
        Kind::Extended,
        Kind::Deleted,
        Kind::Stale,
        Kind::StaleEnd,
        Kind::StaleRun,
    ];
}

/// A fault as it was planted.
pub(super) struct Fault {
    pub(super) kind: Kind,
    /// In words, for whoever looks into it.
    pub(super) what: String,
    pub(super) files: Files,
}

/// Plants one fault that changes something; with `stale_runs` a [`Kind::StaleRun`] wherever there can be one.
pub(super) fn plant(scene: &Scene, stale_runs: bool, rng: &mut Rng) -> Fault {
    let can_be = scene.earlier.iter().any(|earlier| !other_runs(&scene.files, earlier).is_empty());
    loop {
        let kind = match stale_runs && can_be {
            true => Kind::StaleRun,
            false => Kind::ALL[rng.below(Kind::ALL.len() as u64) as usize],
        };
        let mut planter = Planter { scene, files: scene.files.clone(), rng };
        if let Some(what) = planter.plant(kind).filter(|_| planter.files != scene.files) {
            return Fault { kind, what, files: planter.files };
        }
    }
}

/// Believable block headers in a file of segments: offset of the extent, and the header.
pub(super) fn headers(bytes: &[u8]) -> impl Iterator<Item = (usize, BlockHeader)> + '_ {
    bytes.chunks_exact(EXTENT_ALIGN_BYTES).enumerate().filter_map(|(at, sector)| {
        BlockHeader::parse(&sector[FRAME_SIZE_BYTES..]).map(|header| (at * EXTENT_ALIGN_BYTES, header))
    })
}

/// The segment file with the newest block, and where that begins.
fn end_of_log(files: &Files) -> Option<(&str, usize)> {
    let in_file = |(path, bytes): (&'_ String, &'_ Vec<u8>)| {
        let newest = headers(bytes).max_by_key(|(_, header)| header.block_seq);
        newest.map(|(at, header)| (header.block_seq, path.clone(), at))
    };
    let newest = files.iter().filter(|(path, _)| path.starts_with("wal/")).filter_map(in_file).max()?;
    files.get_key_value(&newest.1).map(|(path, _)| (path.as_str(), newest.2))
}

/// Runs of which there was another with the same number.
fn other_runs(files: &Files, earlier: &Files) -> Vec<String> {
    let is_other = |(path, old): &(&String, &Vec<u8>)| {
        path.starts_with("far/") && files.get(*path).is_some_and(|now| !now.starts_with(old))
    };
    earlier.iter().filter(is_other).map(|(path, _)| path.clone()).collect()
}

struct Planter<'a> {
    scene: &'a Scene,
    files: Files,
    rng: &'a mut Rng,
}

/// Bytes of a file from some offset on.
#[derive(Clone, Debug)]
struct Spot {
    path: String,
    at: usize,
}

impl Planter<'_> {
    /// What was done; nothing where the scene has not what it takes.
    fn plant(&mut self, kind: Kind) -> Option<String> {
        match kind {
            Kind::FlippedBits => self.flip_bits(),
            Kind::ZeroedSector => self.zero_sector(),
            Kind::SwappedPlaces => self.swap_places(),
            Kind::MisdirectedWrite => self.misdirect(),
            Kind::SwappedFiles => self.swap_files(),
            Kind::CopiedFile => self.copy_file(),
            Kind::Truncated => self.truncate(),
            Kind::Extended => self.extend(),
            Kind::Deleted => {
                let path = self.file();
                self.files.remove(&path);
                Some(path)
            }
            Kind::Stale => self.stale(),
            Kind::StaleEnd => self.stale_end(),
            Kind::StaleRun => self.stale_run(),
        }
    }

    fn pick<T: Clone>(&mut self, all: &[T]) -> Option<T> {
        (!all.is_empty()).then(|| all[self.rng.below(all.len() as u64) as usize].clone())
    }

    /// Any file; runs, which are small, as often as segments.
    fn file(&mut self) -> String {
        let prefix = ["far/", "far/", "wal/", "wal/", SUPER][self.rng.below(5) as usize];
        let paths: Vec<String> = self.files.keys().filter(|path| path.starts_with(prefix)).cloned().collect();
        self.pick(&paths).unwrap_or_else(|| SUPER.to_owned())
    }

    /// A place of `size` bytes, at a multiple of that; mostly one that holds something, often at the end of the log.
    fn spot(&mut self, size: usize) -> Option<Spot> {
        if self.rng.one_in(5)
            && let Some((path, at)) = end_of_log(&self.files)
        {
            let behind = self.rng.below(4) as usize * EXTENT_ALIGN_BYTES;
            let inside = self.rng.below(EXTENT_ALIGN_BYTES as u64) as usize;
            let at = (at.saturating_sub(behind) + inside) / size * size;
            let spot = Spot { path: path.to_owned(), at };
            return (spot.at + size <= self.files[&spot.path].len()).then_some(spot);
        }
        let path = self.file();
        let bytes = &self.files[&path];
        let any = self.rng.one_in(4);
        let holds = |at: &usize| any || bytes[*at..*at + size].iter().any(|byte| *byte != 0);
        let all: Vec<usize> = (0..bytes.len() / size).map(|n| n * size).filter(holds).collect();
        let at = self.pick(&all)?;
        Some(Spot { path, at })
    }

    fn size(&mut self) -> usize {
        [512, 4096][self.rng.below(2) as usize]
    }

    fn bytes(&mut self, spot: &Spot, size: usize) -> &mut [u8] {
        let file = self.files.get_mut(&spot.path).expect("a spot lies in a file");
        &mut file[spot.at..spot.at + size]
    }

    fn flip_bits(&mut self) -> Option<String> {
        let spot = self.spot(512)?;
        let count = 1 + self.rng.below(8);
        for _ in 0..count {
            let (byte, bit) = (self.rng.below(512) as usize, self.rng.below(8));
            self.bytes(&spot, 512)[byte] ^= 1 << bit;
        }
        Some(format!("{count} bits at {spot:?}"))
    }

    fn zero_sector(&mut self) -> Option<String> {
        let size = self.size();
        let spot = self.spot(size)?;
        self.bytes(&spot, size).fill(0);
        Some(format!("{size} bytes at {spot:?}"))
    }

    /// Two places of one size, from a sector to a few pages.
    fn two_spots(&mut self) -> Option<(Spot, Spot, usize)> {
        let size = [512, 4096, 4096, 8192, 16384][self.rng.below(5) as usize];
        let one = self.spot(size)?;
        let mut other = self.spot(size)?;
        if self.rng.one_in(2) && self.files[&one.path].len() >= other.at + size {
            other.path.clone_from(&one.path);
        }
        Some((one, other, size))
    }

    fn swap_places(&mut self) -> Option<String> {
        let (one, other, size) = self.two_spots()?;
        let first = self.bytes(&one, size).to_vec();
        let second = self.bytes(&other, size).to_vec();
        self.bytes(&one, size).copy_from_slice(&second);
        self.bytes(&other, size).copy_from_slice(&first);
        Some(format!("{size} bytes at {one:?} and {other:?}"))
    }

    fn misdirect(&mut self) -> Option<String> {
        let (one, other, size) = self.two_spots()?;
        let bytes = self.bytes(&one, size).to_vec();
        self.bytes(&other, size).copy_from_slice(&bytes);
        Some(format!("{size} bytes of {one:?} at {other:?}"))
    }

    /// Two files, mostly of one sort.
    fn two_files(&mut self) -> Option<(String, String)> {
        let (one, any) = (self.file(), self.rng.one_in(8));
        let is_alike = |path: &&String| path[..3] == one[..3] || any;
        let others: Vec<String> = self.files.keys().filter(is_alike).cloned().collect();
        let other = self.pick(&others)?;
        Some((one, other))
    }

    fn swap_files(&mut self) -> Option<String> {
        let (one, other) = self.two_files()?;
        let (first, second) = (self.files[&one].clone(), self.files[&other].clone());
        self.files.insert(one.clone(), second);
        self.files.insert(other.clone(), first);
        Some(format!("{one} and {other}"))
    }

    fn copy_file(&mut self) -> Option<String> {
        let (one, other) = self.two_files()?;
        let bytes = self.files[&one].clone();
        self.files.insert(other.clone(), bytes);
        Some(format!("{one} over {other}"))
    }

    /// A length in whole sectors, or any.
    fn below(&mut self, len: usize) -> usize {
        let len = self.rng.below(len.max(1) as u64) as usize;
        let unit = [1, 512, 4096, usize::MAX][self.rng.below(4) as usize];
        len / unit * unit
    }

    fn truncate(&mut self) -> Option<String> {
        let path = self.file();
        let len = self.files[&path].len();
        let left = self.below(len);
        self.files.get_mut(&path)?.truncate(left);
        Some(format!("{path} from {len} to {left} bytes"))
    }

    fn extend(&mut self) -> Option<String> {
        let path = self.file();
        let more = 1 + self.below(8192);
        let noise = self.rng.one_in(2);
        let tail: Vec<u8> = (0..more).map(|_| if noise { self.rng.next_u64() as u8 } else { 0 }).collect();
        self.files.get_mut(&path)?.extend(tail);
        Some(format!("{path} by {more} bytes"))
    }

    fn stale(&mut self) -> Option<String> {
        let at = self.rng.below(self.scene.earlier.len().max(1) as u64) as usize;
        let earlier = self.scene.earlier.get(at)?;
        let others = other_runs(&self.files, earlier);
        let differs = |path: &&String| self.files.get(*path) != earlier.get(*path) && !others.contains(path);
        let paths: Vec<String> = earlier.keys().filter(differs).cloned().collect();
        let path = self.pick(&paths)?;
        let old = &earlier[&path];
        let size = self.size();
        match self.files.get_mut(&path) {
            Some(file) if self.rng.one_in(2) => {
                let is_other = |at: &usize| {
                    let place = *at..*at + size;
                    file.get(place.clone()).is_some_and(|now| old.get(place).is_some_and(|old| old != now))
                };
                let places: Vec<usize> = (0..old.len() / size).map(|n| n * size).filter(is_other).collect();
                let place = *places.get(self.rng.below(places.len().max(1) as u64) as usize)?;
                file[place..place + size].copy_from_slice(&old[place..place + size]);
                Some(format!("{size} bytes of {path} at {place}, of moment {at}"))
            }
            _ => {
                self.files.insert(path.clone(), old.clone());
                Some(format!("{path}, of moment {at}"))
            }
        }
    }

    fn stale_run(&mut self) -> Option<String> {
        let at = self.rng.below(self.scene.earlier.len().max(1) as u64) as usize;
        let earlier = self.scene.earlier.get(at)?;
        let path = self.pick(&other_runs(&self.files, earlier))?;
        self.files.insert(path.clone(), earlier.get(&path)?.clone());
        Some(format!("{path}, of moment {at}"))
    }

    fn stale_end(&mut self) -> Option<String> {
        let at = self.rng.below(self.scene.earlier.len().max(1) as u64) as usize;
        let earlier = self.scene.earlier.get(at)?;
        let newest = end_of_log(&self.files)?.0.to_owned();
        for path in [SUPER, &newest] {
            self.files.insert(path.to_owned(), earlier.get(path)?.clone());
        }
        Some(format!("{SUPER} and {newest}, of moment {at}"))
    }
}
