//go:build unix

package httpapi

import "syscall"

// directForwards says that nothingToRead works here.
const directForwards = true

// nothingToRead looks at a socket that does not block, without taking anything from it
// that would be missed: whoever finds something closes the connection.
func nothingToRead(fd uintptr) bool {
	var b [1]byte
	n, err := syscall.Read(int(fd), b[:])
	return n < 0 && (err == syscall.EAGAIN || err == syscall.EWOULDBLOCK)
}
