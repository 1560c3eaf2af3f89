//go:build !linux

package main

import "syscall"

// childAttributes: other systems have no death signal; the nodes share the
// terminal's signals with sett dev instead.
func childAttributes() *syscall.SysProcAttr { return nil }
