//! Syscalls by name and by number, of the architecture that the agent was built for.

use holdfast_agent_ebpf::syscall::{ABI_ENTRIES, Abi, OTHER_NUMBER};
#[cfg(target_arch = "aarch64")]
use syscalls::aarch64::Sysno;
#[cfg(target_arch = "x86_64")]
use syscalls::x86_64::Sysno;

/// What has no name, or has different ones.
pub const OTHER: &str = "other";

/// The name of a number as the kernel side counts it. A number that this build does not know is "other", as it is to the
/// kernel's side where it lies outside the table.
pub fn name(number: u16) -> &'static str {
    if number >= OTHER_NUMBER {
        return OTHER;
    }
    Sysno::new(number.into()).map_or(OTHER, |syscall| syscall.name())
}

/// What the programs must know of this architecture: see [`Abi`].
pub(super) fn abi() -> [u32; ABI_ENTRIES] {
    let mut abi = [0; ABI_ENTRIES];
    let mut set = |entry: Abi, value: u32| abi[entry as usize] = value;
    set(Abi::Exit, Sysno::exit as u32);
    set(Abi::ExitGroup, Sysno::exit_group as u32);
    set(Abi::RtSigreturn, Sysno::rt_sigreturn as u32);
    set(Abi::Clone, Sysno::clone as u32);
    set(Abi::Clone3, Sysno::clone3 as u32);
    set(Abi::Connect, Sysno::connect as u32);
    set(Abi::Accept, Sysno::accept as u32);
    set(Abi::Accept4, Sysno::accept4 as u32);
    #[cfg(target_arch = "x86_64")]
    {
        // arch/x86/entry/syscalls/syscall_32.tbl; TS_COMPAT in arch/x86/include/asm/thread_info.h, set for the time
        // of the call.
        set(Abi::Fork, Sysno::fork as u32);
        set(Abi::Vfork, Sysno::vfork as u32);
        set(Abi::CompatExitGroup, 252);
        set(Abi::CompatBit, 1 << 1);
    }
    #[cfg(target_arch = "aarch64")]
    {
        // There is only clone. arch/arm64/tools/syscall_32.tbl; TIF_32BIT in arch/arm64/include/asm/thread_info.h.
        set(Abi::Fork, Sysno::clone as u32);
        set(Abi::Vfork, Sysno::clone as u32);
        set(Abi::CompatExitGroup, 248);
        set(Abi::CompatBit, 1 << 22);
    }
    abi
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_architectures_fit_the_kernel_sides_numbers() {
        let largest = [
            syscalls::x86_64::Sysno::iter().map(|syscall| syscall.id()).max(),
            syscalls::aarch64::Sysno::iter().map(|syscall| syscall.id()).max(),
        ];
        for number in largest {
            assert!(
                number.is_some_and(|number| number < i32::from(OTHER_NUMBER)),
                "{number:?}"
            );
        }
    }

    #[test]
    fn the_architectures_have_numbers_of_their_own() {
        use syscalls::{aarch64, x86_64};
        // include/uapi/asm-generic/unistd.h and arch/x86/entry/syscalls/syscall_64.tbl.
        for (name, on_x86, on_arm) in [
            ("read", 0, 63),
            ("openat", 257, 56),
            ("connect", 42, 203),
            ("clone", 56, 220),
            ("execve", 59, 221),
            ("exit_group", 231, 94),
            ("rt_sigreturn", 15, 139),
            ("clone3", 435, 435),
        ] {
            assert_eq!(
                x86_64::Sysno::new(on_x86).map(|syscall| syscall.name()),
                Some(name)
            );
            assert_eq!(
                aarch64::Sysno::new(on_arm).map(|syscall| syscall.name()),
                Some(name)
            );
        }
    }

    #[test]
    fn what_has_no_number_is_other() {
        assert_eq!(name(OTHER_NUMBER), OTHER);
        assert_eq!(name(510), OTHER);
        assert_eq!(name(Sysno::getppid as u16), "getppid");
    }
}
