package httpapi

import (
	"strconv"
	"strings"
	"time"

	"github.com/settkv/sett/kv"
)

// serverTiming writes the stages as a Server-Timing header, in milliseconds.
func serverTiming(t kv.Timing) string {
	b := make([]byte, 0, 128)
	for i, stage := range []struct {
		name string
		took time.Duration
	}{{"forward", t.Forward}, {"queue", t.Queue}, {"replicate", t.Replicate}, {"apply", t.Apply}, {"read", t.Read}} {
		if i > 0 {
			b = append(b, ", "...)
		}
		b = append(append(b, stage.name...), ";dur="...)
		b = strconv.AppendFloat(b, stage.took.Seconds()*1000, 'f', 3, 64)
	}
	return string(b)
}

// parseServerTiming reads what serverTiming wrote; what it doesn't know it skips.
func parseServerTiming(h string) kv.Timing {
	var t kv.Timing
	for part := range strings.SplitSeq(h, ",") {
		name, ms, _ := strings.Cut(strings.TrimSpace(part), ";dur=")
		f, err := strconv.ParseFloat(ms, 64)
		if err != nil || !(f >= 0 && f < float64(MaxTimeout.Milliseconds())) {
			continue
		}
		d := time.Duration(f * float64(time.Millisecond))
		switch name {
		case "forward":
			t.Forward = d
		case "queue":
			t.Queue = d
		case "replicate":
			t.Replicate = d
		case "apply":
			t.Apply = d
		case "read":
			t.Read = d
		}
	}
	return t
}
