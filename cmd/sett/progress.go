package main

import (
	"io"
	"time"

	"github.com/schollz/progressbar/v3"
)

// progress returns a writer that shows on standard error how many bytes went through it,
// of size if that is not negative. On anything but a terminal it shows nothing. done
// ends it.
func (a *app) progress(what string, size int64) (w io.Writer, done func()) {
	if !isTerminal(a.err) {
		return io.Discard, func() {}
	}
	bar := progressbar.NewOptions64(size,
		progressbar.OptionSetWriter(a.err),
		progressbar.OptionSetDescription(what),
		progressbar.OptionShowBytes(true),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionClearOnFinish(),
	)
	return bar, func() { _ = bar.Finish() } // what is shown is of no consequence
}
