package badgerkit

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	badger "github.com/dgraph-io/badger/v2"
)

// recovered are the beginnings of messages that Badger logs at a low level although data was dropped or
// writes stand still; they are raised to warnings.
var recovered = []string{"Truncating vlog file", "Found an incomplete txn", "STALLED", "UNSTALLED"}

// Logger bridges Badger's logger to l. Badger's INFO, which tells of every flush and compaction, becomes
// debug. name says which database speaks. It is never nil, also for a nil l (then nothing is logged):
// Badger dereferences its logger on some error paths (Invariant B8).
func Logger(l *slog.Logger, name string) badger.Logger {
	if l == nil {
		l = slog.New(slog.DiscardHandler)
	}
	return &bridge{log: l.With(slog.String("database", name))}
}

type bridge struct{ log *slog.Logger }

func (b *bridge) Errorf(format string, args ...any)   { b.emit(slog.LevelError, format, args) }
func (b *bridge) Warningf(format string, args ...any) { b.emit(slog.LevelWarn, format, args) }
func (b *bridge) Infof(format string, args ...any)    { b.emit(slog.LevelDebug, format, args) }
func (b *bridge) Debugf(format string, args ...any)   { b.emit(slog.LevelDebug, format, args) }

func (b *bridge) emit(level slog.Level, format string, args []any) {
	if level == slog.LevelDebug {
		for _, p := range recovered {
			if strings.HasPrefix(format, p) {
				level = slog.LevelWarn
				break
			}
		}
	}
	ctx := context.Background()
	if !b.log.Enabled(ctx, level) {
		return
	}
	b.log.Log(ctx, level, "badger: "+strings.TrimSpace(fmt.Sprintf(format, args...)))
}
