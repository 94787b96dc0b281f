//! The pause image, made here so that a node needs no registry to start its first pod.
//!
//! A sandbox's first process only has to stay, to reap what is left to it when containers share its
//! process namespace, and to go when told. That is a few dozen instructions, so the program is written
//! out as machine code in an ELF file of one segment.

use crate::archive::{self, ArchiveError};

/// The name the image is imported under; the runtime's `sandbox_image` must say the same.
pub const IMAGE: &str = "rkube.local/pause:1";

/// Where the code begins: ELF header (64) and one program header (56).
const CODE_OFFSET: usize = 120;
const LOAD_ADDRESS: u64 = 0x40_0000;

/// ```text
/// block {INT, TERM, CHLD}
/// loop: wait for one of them
///       not a signal -> loop;  CHLD -> reap every child that ended, loop;  else exit(0)
/// ```
/// The signals are waited for instead of handled: a blocked signal is delivered even to the first
/// process of a process namespace, which otherwise is deaf to signals it has no handler for.
#[rustfmt::skip]
const X86_64: &[u8] = &[
    0x68, 0x02, 0x40, 0x01, 0x00,       // push   0x14002        the set: 1<<1 | 1<<14 | 1<<16
    0x48, 0x89, 0xe6,                   // mov    rsi, rsp
    0x31, 0xff,                         // xor    edi, edi       SIG_BLOCK
    0x31, 0xd2,                         // xor    edx, edx
    0x6a, 0x08, 0x41, 0x5a,             // push 8; pop r10
    0x6a, 0x0e, 0x58,                   // push 14; pop rax      rt_sigprocmask
    0x0f, 0x05,                         // syscall
    // wait:
    0x48, 0x89, 0xe7,                   // mov    rdi, rsp
    0x31, 0xf6,                         // xor    esi, esi
    0x31, 0xd2,                         // xor    edx, edx
    0x6a, 0x08, 0x41, 0x5a,             // push 8; pop r10
    0xb8, 0x80, 0x00, 0x00, 0x00,       // mov    eax, 128       rt_sigtimedwait
    0x0f, 0x05,                         // syscall
    0x83, 0xf8, 0x11,                   // cmp    eax, 17        SIGCHLD
    0x74, 0x0b,                         // je     reap
    0x85, 0xc0,                         // test   eax, eax
    0x78, 0xe5,                         // js     wait
    0x31, 0xff,                         // xor    edi, edi
    0x6a, 0x3c, 0x58,                   // push 60; pop rax      exit
    0x0f, 0x05,                         // syscall
    // reap:
    0x6a, 0xff, 0x5f,                   // push -1; pop rdi      any child
    0x31, 0xf6,                         // xor    esi, esi
    0x6a, 0x01, 0x5a,                   // push 1; pop rdx       WNOHANG
    0x45, 0x31, 0xd2,                   // xor    r10d, r10d
    0x6a, 0x3d, 0x58,                   // push 61; pop rax      wait4
    0x0f, 0x05,                         // syscall
    0x85, 0xc0,                         // test   eax, eax
    0x7f, 0xec,                         // jg     reap
    0xeb, 0xc8,                         // jmp    wait
];

/// The same program. Instructions are little-endian words.
#[rustfmt::skip]
const AARCH64: &[u32] = &[
    0xd10043ff,                         // sub  sp, sp, #16
    0xd2880041,                         // movz x1, #0x4002
    0xf2a00021,                         // movk x1, #1, lsl #16
    0xf90003e1,                         // str  x1, [sp]
    0xd2800000,                         // mov  x0, #0           SIG_BLOCK
    0x910003e1,                         // mov  x1, sp
    0xd2800002,                         // mov  x2, #0
    0xd2800103,                         // mov  x3, #8
    0xd28010e8,                         // mov  x8, #135         rt_sigprocmask
    0xd4000001,                         // svc  #0
    // wait:
    0x910003e0,                         // mov  x0, sp
    0xd2800001,                         // mov  x1, #0
    0xd2800002,                         // mov  x2, #0
    0xd2800103,                         // mov  x3, #8
    0xd2801128,                         // mov  x8, #137         rt_sigtimedwait
    0xd4000001,                         // svc  #0
    0x7100441f,                         // cmp  w0, #17          SIGCHLD
    0x540000c0,                         // b.eq reap (+6)
    0xf100001f,                         // cmp  x0, #0
    0x54fffeeb,                         // b.lt wait (-9)
    0xd2800000,                         // mov  x0, #0
    0xd2800ba8,                         // mov  x8, #93          exit
    0xd4000001,                         // svc  #0
    // reap:
    0x92800000,                         // mov  x0, #-1
    0xd2800001,                         // mov  x1, #0
    0xd2800022,                         // mov  x2, #1           WNOHANG
    0xd2800003,                         // mov  x3, #0
    0xd2802088,                         // mov  x8, #260         wait4
    0xd4000001,                         // svc  #0
    0xf100001f,                         // cmp  x0, #0
    0x54ffff2c,                         // b.gt reap (-7)
    0x17ffffeb,                         // b    wait (-21)
];

/// The processor this build runs on, as image manifests name it.
pub const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };

/// The image as an archive that [`containerd`](crate::containerd) imports.
pub fn archive() -> Result<Vec<u8>, ArchiveError> {
    archive::build(IMAGE, ARCHITECTURE, &[("pause", 0o755, &program())], &["/pause"])
}

/// The ELF file for this build's processor.
pub fn program() -> Vec<u8> {
    let (machine, code) = if cfg!(target_arch = "aarch64") {
        (183, AARCH64.iter().flat_map(|word| word.to_le_bytes()).collect())
    } else {
        (62, X86_64.to_vec())
    };
    elf(machine, &code)
}

fn elf(machine: u16, code: &[u8]) -> Vec<u8> {
    let size = (CODE_OFFSET + code.len()) as u64;
    let mut file = Vec::with_capacity(CODE_OFFSET + code.len());
    // 64-bit, little-endian, version 1, System V.
    file.extend_from_slice(b"\x7fELF\x02\x01\x01");
    file.resize(16, 0);
    file.extend_from_slice(&2u16.to_le_bytes()); // an executable
    file.extend_from_slice(&machine.to_le_bytes());
    file.extend_from_slice(&1u32.to_le_bytes());
    file.extend_from_slice(&(LOAD_ADDRESS + CODE_OFFSET as u64).to_le_bytes()); // entry
    file.extend_from_slice(&64u64.to_le_bytes()); // program headers follow this header
    file.extend_from_slice(&0u64.to_le_bytes()); // no section headers
    file.extend_from_slice(&0u32.to_le_bytes());
    for half in [64u16, 56, 1, 64, 0, 0] {
        file.extend_from_slice(&half.to_le_bytes());
    }
    file.extend_from_slice(&1u32.to_le_bytes()); // load,
    file.extend_from_slice(&5u32.to_le_bytes()); // readable and executable,
    for word in [0, LOAD_ADDRESS, LOAD_ADDRESS, size, size, 0x1000] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    debug_assert_eq!(file.len(), CODE_OFFSET, "the code begins where the entry point says");
    file.extend_from_slice(code);
    file
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Child, Command};

    use super::*;

    /// Runs the program itself: nothing else proves machine code.
    fn run(folder: &std::path::Path) -> Child {
        let path = folder.join("pause");
        std::fs::write(&path, program()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Command::new(&path).spawn().unwrap()
    }

    #[test]
    fn stays_until_it_is_told_to_go() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = run(folder.path());
        let pid = child.id();
        // A signal of a child that never was makes it look for children and wait again.
        Command::new("kill").args(["-CHLD", &pid.to_string()]).status().unwrap();
        assert!(child.try_wait().unwrap().is_none(), "it left without being told");
        Command::new("kill").args(["-TERM", &pid.to_string()]).status().unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}
