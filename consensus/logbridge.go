package consensus

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// logBridge passes what raft logs on to slog. An error of raft's is mostly a peer
// that does not answer, which passes: it becomes a warning. The same warning comes
// at most once in bridgeRepeat, because raft repeats itself at each attempt.
type logBridge struct {
	log     *slog.Logger
	name    string
	implied []any
	repeats *repeats // shared by all loggers derived from one
}

const bridgeRepeat = 10 * time.Second

type repeats struct {
	mu   sync.Mutex
	last map[string]time.Time // by message; raft's messages are constants
}

// allow says whether msg may be logged now.
func (r *repeats) allow(msg string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if last, ok := r.last[msg]; ok && now.Sub(last) < bridgeRepeat {
		return false
	}
	if len(r.last) > 1000 {
		clear(r.last)
	}
	r.last[msg] = now
	return true
}

var _ hclog.Logger = (*logBridge)(nil)

func newLogBridge(l *slog.Logger) *logBridge {
	return &logBridge{log: l.With("library", "raft"), name: "raft", repeats: &repeats{last: make(map[string]time.Time)}}
}

func slogLevel(l hclog.Level) slog.Level {
	switch l {
	case hclog.Info:
		return slog.LevelInfo
	case hclog.Warn, hclog.Error:
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

// Log implements hclog.Logger, as do the methods below.
func (b *logBridge) Log(level hclog.Level, msg string, args ...any) {
	to := slogLevel(level)
	if !b.log.Enabled(context.Background(), to) {
		return
	}
	if to == slog.LevelWarn && !b.repeats.allow(msg) {
		return
	}
	attrs := make([]any, 0, len(args))
	for i := 0; i+1 < len(args); i += 2 {
		attrs = append(attrs, slog.Any(strings.ReplaceAll(fmt.Sprint(args[i]), "-", "_"), logValue(args[i+1])))
	}
	b.log.Log(context.Background(), to, msg, attrs...)
}

// logValue resolves the values that hclog formats lazily.
func logValue(v any) any {
	switch v := v.(type) {
	case hclog.Format:
		if len(v) == 0 {
			return ""
		}
		return fmt.Sprintf(fmt.Sprint(v[0]), v[1:]...)
	case fmt.Stringer:
		return v.String()
	}
	return v
}

func (b *logBridge) Trace(msg string, args ...any) { b.Log(hclog.Trace, msg, args...) }
func (b *logBridge) Debug(msg string, args ...any) { b.Log(hclog.Debug, msg, args...) }
func (b *logBridge) Info(msg string, args ...any)  { b.Log(hclog.Info, msg, args...) }
func (b *logBridge) Warn(msg string, args ...any)  { b.Log(hclog.Warn, msg, args...) }
func (b *logBridge) Error(msg string, args ...any) { b.Log(hclog.Error, msg, args...) }

func (b *logBridge) enabled(l hclog.Level) bool {
	return b.log.Enabled(context.Background(), slogLevel(l))
}
func (b *logBridge) IsTrace() bool { return false }
func (b *logBridge) IsDebug() bool { return b.enabled(hclog.Debug) }
func (b *logBridge) IsInfo() bool  { return b.enabled(hclog.Info) }
func (b *logBridge) IsWarn() bool  { return b.enabled(hclog.Warn) }
func (b *logBridge) IsError() bool { return b.enabled(hclog.Error) }

func (b *logBridge) ImpliedArgs() []any { return b.implied }

func (b *logBridge) With(args ...any) hclog.Logger {
	d := *b
	d.log = b.log.With(args...)
	d.implied = append(append([]any(nil), b.implied...), args...)
	return &d
}

func (b *logBridge) Name() string { return b.name }

func (b *logBridge) Named(name string) hclog.Logger { return b.ResetNamed(b.name + "." + name) }

func (b *logBridge) ResetNamed(name string) hclog.Logger {
	d := *b
	d.name = name
	return &d
}

func (b *logBridge) SetLevel(hclog.Level) {} // slog's handler decides

func (b *logBridge) GetLevel() hclog.Level {
	switch {
	case b.IsDebug():
		return hclog.Debug
	case b.IsInfo():
		return hclog.Info
	}
	return hclog.Warn
}

func (b *logBridge) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return log.New(b.StandardWriter(nil), "", 0)
}

func (b *logBridge) StandardWriter(*hclog.StandardLoggerOptions) io.Writer {
	return bridgeWriter{b}
}

type bridgeWriter struct{ b *logBridge }

func (w bridgeWriter) Write(p []byte) (int, error) {
	w.b.Info(string(bytes.TrimSpace(p)))
	return len(p), nil
}
