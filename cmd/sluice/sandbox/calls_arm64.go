package sandbox

import "golang.org/x/sys/unix"

// auditArch is how the kernel calls this architecture.
const auditArch = unix.AUDIT_ARCH_AARCH64

// refusedHere are calls that other architectures do not have.
var refusedHere = []uint32{unix.SYS_KEXEC_FILE_LOAD}
