package main

import "syscall"

// childAttributes keeps Ctrl-C on the terminal away from the nodes, whom sett dev
// stops itself, and lets them die with it, however it dies.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
