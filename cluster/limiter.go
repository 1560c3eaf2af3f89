package cluster

import (
	"strings"
	"sync"
	"time"
)

// limiter lets the same kind of warning through once in a while. It remembers a
// bounded number of kinds: a flood of different ones is dropped, not stored.
type limiter struct {
	every time.Duration

	mu   sync.Mutex
	last map[string]time.Time
}

const maxLimiterKinds = 256

func newLimiter(every time.Duration) *limiter {
	return &limiter{every: every, last: map[string]time.Time{}}
}

// allow says whether a warning of this kind may be logged now.
func (l *limiter) allow(kind string) bool {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if t, ok := l.last[kind]; ok && now.Sub(t) < l.every {
		return false
	}
	if len(l.last) >= maxLimiterKinds {
		for k, t := range l.last {
			if now.Sub(t) >= l.every {
				delete(l.last, k)
			}
		}
		if len(l.last) >= maxLimiterKinds {
			return false
		}
	}
	l.last[kind] = now
	return true
}

// kindOf reduces a log line to what it is about: no digits, no tail.
func kindOf(line string) string {
	line = strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return -1
		}
		return r
	}, line)
	return line[:min(len(line), 60)]
}
