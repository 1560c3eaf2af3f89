//go:build !unix

package httpapi

// directForwards is off where a connection can't be checked before it is used again.
const directForwards = false

func nothingToRead(uintptr) bool { return false }
