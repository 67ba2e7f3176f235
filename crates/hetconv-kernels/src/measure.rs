//! What this machine is and can do at most: the yardsticks that kernels are held against.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use crate::{Isa, Simd, Task};

/// The CPU's name as the system gives it, or its architecture where it doesn't.
pub fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

/// Whether the machine, or the container that this process is in, has memory for so many values of `f32`, swap included and
/// other programs left out, as far as the system tells. It gives out more than there is, and ends whoever then uses it.
///
/// ```
/// use hetconv_kernels::measure::has_memory;
/// assert!(has_memory(1 << 10));
/// assert!(!has_memory(usize::MAX));
/// ```
pub fn has_memory(values: usize) -> bool {
    /// Less is not worth asking for: 256 MiB.
    const LITTLE: usize = 64 << 20;
    if values <= LITTLE {
        return true;
    }
    let bytes = values.checked_mul(size_of::<f32>()).filter(|&bytes| isize::try_from(bytes).is_ok());
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let text = |path: &str| read(Path::new(path)).unwrap_or_default();
    let limit = group_limit_kib(&text("/proc/self/cgroup"), read);
    bytes.is_some_and(|bytes| memory_kib(&text("/proc/meminfo"), limit).is_none_or(|kib| bytes >> 10 <= kib))
}

/// Memory, or the limit that is set to it, and swap by what Linux says of them, in KiB.
fn memory_kib(info: &str, limit: Option<usize>) -> Option<usize> {
    let of =
        |what: &str| info.lines().find_map(|line| line.strip_prefix(what)?.trim().strip_suffix(" kB")?.parse().ok());
    let (memory, swap): (usize, usize) = (of("MemTotal:")?, of("SwapTotal:").unwrap_or(0));
    Some(memory.min(limit.unwrap_or(memory)) + swap)
}

/// The memory that a process's control groups, and those around them, leave it, in KiB: what a container may use.
///
/// `groups` is what Linux lists, a line `number:controllers:path` each; in version 2 all controllers are in one group,
/// whose line names none.
fn group_limit_kib(groups: &str, read: impl Fn(&Path) -> Option<String>) -> Option<usize> {
    let limits = groups.lines().flat_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        };
        let is_of_memory = controllers.is_empty() || controllers.split(',').any(|controller| controller == "memory");
        let group = Path::new(root).join(path.trim_start_matches('/'));
        let around = group.ancestors().filter(|folder| is_of_memory && folder.starts_with(root));
        // A group without a limit says `max`, or a number beyond all memory.
        let limit = |folder: &Path| read(&folder.join(file))?.trim().parse::<usize>().ok();
        around.filter_map(limit).min()
    });
    limits.min().map(|bytes| bytes >> 10)
}

/// The rate at which one thread can multiply and add with this instruction set, in 10⁹ floating-point operations per
/// second; a multiply-accumulate is two of them.
///
/// The fastest of many short trials: whatever else the machine does only ever slows a trial down. Takes a few hundredths
/// of a second.
///
/// ```
/// use hetconv_kernels::{Isa, measure};
/// let peak = measure::fma_peak(Isa::selected()?);
/// assert!(peak > 0.0);
/// # Ok::<(), hetconv_kernels::IsaError>(())
/// ```
pub fn fma_peak(isa: Isa) -> f64 {
    const ROUNDS: usize = 100_000;
    let trial = |_| {
        let start = Instant::now();
        let sum = isa.run(Chains { rounds: ROUNDS, factor: black_box(0.999), summand: black_box(0.001) });
        black_box(sum);
        start.elapsed()
    };
    let operations = 2 * CHAINS * isa.lanes() * ROUNDS;
    rate(operations, (0..32).map(trial))
}

/// The sum of [`fma_peak`] over the threads of the current pool, all of them measured at the same time: less than so many
/// times one thread's rate where threads share a core.
pub fn fma_peak_all_threads(isa: Isa) -> f64 {
    rayon::broadcast(|_| fma_peak(isa)).into_iter().sum()
}

/// The rate at which the threads of the current pool together copy memory that no cache holds, in 10⁹ bytes per second;
/// a byte that is read and written counts twice.
pub fn memory_bandwidth() -> f64 {
    const BYTES: usize = 128 << 20;
    const PART: usize = 1 << 20;
    let source = vec![1u8; BYTES];
    let mut target = vec![0u8; BYTES];
    let mut trial = |_| {
        let start = Instant::now();
        target.par_chunks_mut(PART).zip(source.par_chunks(PART)).for_each(|(to, from)| to.copy_from_slice(from));
        black_box(&mut target);
        start.elapsed()
    };
    // The first trial faults the pages in, and is never the fastest.
    rate(2 * BYTES, (0..6).map(&mut trial))
}

/// The rate at which the threads of the current pool together read memory that no cache holds, in 10⁹ bytes per second.
pub fn read_bandwidth() -> f64 {
    const VALUES: usize = 32 << 20;
    let source = vec![1u64; VALUES];
    let trial = |_| {
        let start = Instant::now();
        let sum = source.par_chunks(VALUES / 64).map(|part| part.iter().fold(0, |a: u64, b| a.wrapping_add(*b)));
        black_box(sum.reduce(|| 0, u64::wrapping_add));
        start.elapsed()
    };
    rate(8 * VALUES, (0..6).map(trial))
}

/// Billions per second in the fastest trial.
fn rate(work: usize, trials: impl Iterator<Item = Duration>) -> f64 {
    let fastest = trials.map(|time| time.as_secs_f64()).fold(f64::INFINITY, f64::min);
    work as f64 / fastest / 1e9
}

/// Independent chains of multiply-adds: more than twice four cycles' latency, and few enough for sixteen registers.
const CHAINS: usize = 12;

/// `x ← x·factor + summand` over and over, on every lane of every chain. Floating-point arithmetic is not associative, so
/// no compiler may shorten it.
struct Chains {
    rounds: usize,
    factor: f32,
    summand: f32,
}

impl Task for Chains {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let (factor, summand) = (simd.splat(self.factor), simd.splat(self.summand));
        let mut chains = [simd.splat(1.0); CHAINS];
        for (i, chain) in chains.iter_mut().enumerate() {
            *chain = simd.splat(i as f32);
        }
        for _ in 0..self.rounds {
            for chain in &mut chains {
                *chain = simd.mul_add(*chain, factor, summand);
            }
        }
        let sum = chains.into_iter().fold(simd.splat(0.0), |sum, chain| simd.add(sum, chain));
        let mut lanes = [0.0f32; 16];
        // SAFETY: a vector has at most sixteen lanes, and `lanes` holds sixteen values.
        unsafe { simd.store(lanes.as_mut_ptr(), sum) };
        lanes.into_iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_multiply_add_is_carried_out() {
        for isa in Isa::available() {
            let run = |rounds| isa.run(Chains { rounds, factor: 0.5, summand: 1.0 });
            // After one round chain i holds i/2 + 1: 66/2 + 12 on every lane. The limit is 2.
            assert_eq!(run(1), 45.0 * isa.lanes() as f32, "{isa:?}");
            assert_eq!(run(200), 24.0 * isa.lanes() as f32, "{isa:?}");
        }
    }

    #[test]
    fn memory_is_as_much_as_the_system_says() {
        let info = "MemTotal:       24601096 kB\nMemFree:         1 kB\nSwapTotal:       1000 kB\nSwapFree:  1 kB\n";
        assert_eq!(memory_kib(info, None), Some(24_602_096));
        assert_eq!(memory_kib(info, Some(500)), Some(1_500));
        assert_eq!(memory_kib(info, Some(usize::MAX >> 10)), Some(24_602_096));
        assert_eq!(memory_kib("MemTotal: 7 kB", None), Some(7));
        assert_eq!(memory_kib("MemTotal: much", Some(1)), None);
        #[cfg(target_os = "linux")]
        assert!(!has_memory(1 << 44), "64 TiB");
    }

    #[test]
    fn a_container_has_what_its_groups_and_those_around_leave_it() {
        let files = [
            ("/sys/fs/cgroup/memory.max", "max\n"),
            ("/sys/fs/cgroup/pod/memory.max", "1048576\n"),
            ("/sys/fs/cgroup/pod/one/memory.max", "2097152\n"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("/sys/fs/cgroup/memory/box/memory.limit_in_bytes", "4096\n"),
            ("/sys/fs/cgroup/memory/pod/memory.limit_in_bytes", "1024\n"),
        ];
        let read = |path: &Path| {
            let found = files.iter().find(|(name, _)| path == Path::new(name));
            found.map(|(_, text)| (*text).to_owned())
        };
        assert_eq!(group_limit_kib("0::/pod/one\n", read), Some(1024));
        assert_eq!(group_limit_kib("0::/\n", read), None);
        assert_eq!(group_limit_kib("9:cpu:/pod\n4:memory,hugetlb:/box/inner\n0::/\n", read), Some(4));
        assert_eq!(group_limit_kib("4:memory:/elsewhere\n", read), Some(9_007_199_254_740_988));
        assert_eq!(group_limit_kib("nothing of the kind\n::\n", read), None);
        assert_eq!(group_limit_kib("", read), None);
    }
}
