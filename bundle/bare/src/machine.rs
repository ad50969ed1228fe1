//! What differs by machine: where a program begins, and the two calls of Linux that qemu's user mode answers.

use core::{arch::asm, fmt};

#[cfg(target_arch = "arm")]
core::arch::global_asm!(
    ".syntax unified",
    ".thumb",
    ".global _start",
    ".thumb_func",
    "_start:",
    "bl begin"
);
#[cfg(target_arch = "aarch64")]
core::arch::global_asm!(".global _start", "_start:", "bl begin");
#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(".global _start", "_start:", "and rsp, -16", "call begin");
#[cfg(target_arch = "s390x")]
core::arch::global_asm!(
    ".global _start",
    "_start:",
    "aghi %r15, -160",
    "brasl %r14, begin"
);

/// Call `number` of Linux, with three arguments.
fn call(number: usize, one: usize, two: usize, three: usize) {
    // SAFETY: only `write` of a live buffer and `exit` are called; neither changes memory of this program.
    unsafe {
        #[cfg(target_arch = "arm")]
        asm!("push {{r7}}", "mov r7, {number}", "svc 0", "pop {{r7}}", number = in(reg) number,
             inout("r0") one => _, in("r1") two, in("r2") three);
        #[cfg(target_arch = "aarch64")]
        asm!("svc 0", in("x8") number, inout("x0") one => _, in("x1") two, in("x2") three);
        #[cfg(target_arch = "x86_64")]
        asm!("syscall", inout("rax") number => _, in("rdi") one, in("rsi") two, in("rdx") three,
             out("rcx") _, out("r11") _);
        #[cfg(target_arch = "s390x")]
        asm!("svc 0", in("r1") number, inout("r2") one => _, in("r3") two, in("r4") three);
    }
}

const WRITE: usize = if cfg!(target_arch = "aarch64") {
    64
} else if cfg!(target_arch = "x86_64") {
    1
} else {
    4
};
const EXIT: usize = if cfg!(target_arch = "aarch64") {
    93
} else if cfg!(target_arch = "x86_64") {
    60
} else {
    1
};

/// Ends the program.
pub fn end(code: usize) -> ! {
    loop {
        call(EXIT, code, 0, 0);
    }
}

/// Standard output.
pub struct Out;

impl fmt::Write for Out {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        call(WRITE, 1, text.as_ptr().addr(), text.len());
        Ok(())
    }
}

const PAINT: u8 = 0xA5;
/// Bytes right below that belong to the painter's own calls.
const OWN_BYTES: usize = 1024;

/// Bytes of stack that `work` takes, found by painting `painted` bytes below and looking at what is left of it.
#[inline(never)]
pub fn stack_bytes(painted: usize, work: impl FnOnce()) -> usize {
    let here = 0u8;
    let top = &raw const here;
    let bottom = top.wrapping_sub(painted).cast_mut();
    for at in 0..painted.saturating_sub(OWN_BYTES) {
        // SAFETY: the stack is megabytes deep here, and nothing live is `OWN_BYTES` below this frame.
        unsafe { bottom.wrapping_add(at).write_volatile(PAINT) };
    }
    work();
    // SAFETY: as above; these bytes were painted.
    let left =
        (0..painted).take_while(|at| unsafe { bottom.wrapping_add(*at).read_volatile() } == PAINT);
    painted.saturating_sub(left.count())
}
