package faulttest

import "syscall"

// dieWithParent makes the kernel kill a node when this test process is gone.
func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
