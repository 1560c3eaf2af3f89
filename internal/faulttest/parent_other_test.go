//go:build !linux

package faulttest

import "syscall"

// dieWithParent does nothing here: only Linux can tie a process to another's life.
func dieWithParent() *syscall.SysProcAttr { return nil }
