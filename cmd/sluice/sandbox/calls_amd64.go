package sandbox

import "golang.org/x/sys/unix"

// auditArch is how the kernel calls this architecture.
const auditArch = unix.AUDIT_ARCH_X86_64

// refusedHere are calls that other architectures do not have.
var refusedHere = []uint32{
	unix.SYS_KEXEC_FILE_LOAD, unix.SYS_IOPL, unix.SYS_IOPERM, unix.SYS_MODIFY_LDT, unix.SYS_MKNOD, unix.SYS_USELIB, unix.SYS_USTAT, unix.SYS_SYSFS,
	unix.SYS__SYSCTL, unix.SYS_CREATE_MODULE, unix.SYS_GET_KERNEL_SYMS, unix.SYS_QUERY_MODULE,
}
