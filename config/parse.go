package config

import (
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"strconv"
	"strings"
	"time"
)

// valueType is how one kind of value is written: parsed from text, and shown.
type valueType[T any] struct {
	kind   string // for the help and the manual
	parse  func(string) (T, error)
	format func(T) string
}

// binding ties a setting to its field in Config.
type binding struct {
	kind string
	list bool
	// set parses the given texts into the field. A single-valued setting takes
	// exactly one text, a list any number.
	set  func(*Config, []string) error
	show func(*Config) string
}

func bind[T any](t valueType[T], field func(*Config) *T) binding {
	return binding{
		kind: t.kind,
		set: func(c *Config, raw []string) error {
			if len(raw) != 1 {
				return errors.New("want one value, not a list")
			}
			v, err := t.parse(raw[0])
			if err != nil {
				return err
			}
			*field(c) = v
			return nil
		},
		show: func(c *Config) string { return t.format(*field(c)) },
	}
}

func bindList[T any](t valueType[T], field func(*Config) *[]T) binding {
	return binding{
		kind: "list of " + t.kind,
		list: true,
		set: func(c *Config, raw []string) error {
			var list []T
			for _, text := range raw {
				for _, item := range strings.Split(text, ",") {
					if item = strings.TrimSpace(item); item == "" {
						continue
					}
					v, err := t.parse(item)
					if err != nil {
						return err
					}
					list = append(list, v)
				}
			}
			*field(c) = list
			return nil
		},
		show: func(c *Config) string {
			items := make([]string, 0, len(*field(c)))
			for _, v := range *field(c) {
				items = append(items, t.format(v))
			}
			return strings.Join(items, ",")
		},
	}
}

// fixed is a setting that exists in Badger and has only one possible value here;
// giving that value is harmless, giving another is refused with the reason.
func fixed(kind, only, reason string) binding {
	return binding{
		kind: kind,
		set: func(_ *Config, raw []string) error {
			if len(raw) == 1 && strings.EqualFold(raw[0], only) {
				return nil
			}
			return errors.New(reason)
		},
		show: func(*Config) string { return only },
	}
}

func same(s string) string { return s }

// path is a folder; it must not be empty.
func path() valueType[string] {
	return valueType[string]{"path", func(s string) (string, error) {
		if s == "" {
			return "", errors.New("want a path, got nothing")
		}
		return s, nil
	}, same}
}

// nameBytes bounds a node's and a cluster's name; both travel in every gossip packet.
const nameBytes = 128

// name is a word that needs no quoting in a URL or a shell.
func name() valueType[string] {
	return valueType[string]{"name", func(s string) (string, error) {
		bad := func(r rune) bool {
			return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-')
		}
		if s == "" || len(s) > nameBytes || strings.ContainsFunc(s, bad) || s == "." || s == ".." {
			return "", fmt.Errorf("want 1 to %d letters, digits, dots, dashes or underscores", nameBytes)
		}
		return s, nil
	}, same}
}

// oneOf is a choice of words.
func oneOf(words ...string) valueType[string] {
	return valueType[string]{strings.Join(words, "|"), func(s string) (string, error) {
		for _, w := range words {
			if s == w {
				return s, nil
			}
		}
		return "", fmt.Errorf("want one of %s", strings.Join(words, ", "))
	}, same}
}

func level() valueType[slog.Level] {
	words := []string{"debug", "info", "warn", "error"}
	levels := []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError}
	return valueType[slog.Level]{strings.Join(words, "|"), func(s string) (slog.Level, error) {
		for i, w := range words {
			if strings.EqualFold(s, w) {
				return levels[i], nil
			}
		}
		return 0, fmt.Errorf("want one of %s", strings.Join(words, ", "))
	}, func(l slog.Level) string { return strings.ToLower(l.String()) }}
}

func boolean() valueType[bool] {
	return valueType[bool]{"bool", func(s string) (bool, error) {
		v, err := strconv.ParseBool(s)
		if err != nil {
			return false, errors.New("want true or false")
		}
		return v, nil
	}, strconv.FormatBool}
}

// integer is a whole number from low to high, both included.
func integer[T int | uint32 | uint64](low, high T) valueType[T] {
	return valueType[T]{"number", func(s string) (T, error) {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n < 0 || uint64(n) < uint64(low) || uint64(n) > uint64(high) {
			return 0, fmt.Errorf("want a whole number from %d to %d", low, high)
		}
		return T(n), nil
	}, func(n T) string { return fmt.Sprint(n) }}
}

// fraction is a number strictly between 0 and 1.
func fraction() valueType[float64] {
	return valueType[float64]{"fraction", func(s string) (float64, error) {
		f, err := strconv.ParseFloat(s, 64)
		if err != nil || math.IsNaN(f) || f <= 0 || f >= 1 {
			return 0, errors.New("want a number between 0 and 1, for example 0.5")
		}
		return f, nil
	}, func(f float64) string { return strconv.FormatFloat(f, 'g', -1, 64) }}
}

// duration is a Go duration or a number of seconds, from low to high.
func duration(low, high time.Duration) valueType[time.Duration] {
	return valueType[time.Duration]{"duration", func(s string) (time.Duration, error) {
		d, err := ParseDuration(s)
		if err != nil {
			return 0, err
		}
		if d < low || d > high {
			return 0, fmt.Errorf("want a duration from %s to %s", formatDuration(low), formatDuration(high))
		}
		return d, nil
	}, formatDuration}
}

// ParseDuration reads a duration as Go writes it ("1h30m") or a plain number of
// seconds ("90", "0.5"). It is never negative.
func ParseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		f, ferr := strconv.ParseFloat(s, 64)
		// Anything near the edge of time.Duration is refused rather than rounded.
		if ferr != nil || math.IsNaN(f) || math.Abs(f) > 9e9 {
			return 0, errors.New("want a duration such as 30s or 1h30m, or a number of seconds")
		}
		d = time.Duration(f * float64(time.Second))
	}
	if d < 0 {
		return 0, errors.New("want a duration that is not negative")
	}
	return d, nil
}

// seconds shows a duration as the number of seconds it is.
func seconds(t valueType[time.Duration]) valueType[time.Duration] {
	t.format = func(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) }
	return t
}

// formatDuration drops the zero units that time.Duration prints: 1h, not 1h0m0s.
func formatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// size is a number of bytes, from low to high.
func size[T int64 | uint64](low, high T) valueType[T] {
	return valueType[T]{"size", func(s string) (T, error) {
		n, err := ParseSize(s)
		if err != nil {
			return 0, err
		}
		if n < uint64(low) || n > uint64(high) {
			return 0, fmt.Errorf("want a size from %s to %s", shortSize(uint64(low)), shortSize(uint64(high)))
		}
		return T(n), nil
	}, func(n T) string { return formatSize(uint64(n)) }}
}

var units = []struct {
	suffix string
	bytes  uint64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"Ki", 1 << 10}, {"Mi", 1 << 20}, {"Gi", 1 << 30}, {"Ti", 1 << 40},
	{"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1},
}

// ParseSize reads a number of bytes: plain ("1048576"), in powers of 1024 ("8MiB",
// "8Mi") or of 1000 ("64MB"). Upper and lower case are the same.
func ParseSize(s string) (uint64, error) {
	text, factor := s, uint64(1)
	for _, u := range units {
		if rest := len(s) - len(u.suffix); rest > 0 && strings.EqualFold(s[rest:], u.suffix) {
			text, factor = strings.TrimSpace(s[:rest]), u.bytes
			break
		}
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n > math.MaxInt64/factor {
		return 0, errors.New("want a size such as 1048576, 8MiB or 64MB")
	}
	return n * factor, nil
}

func shortSize(n uint64) string {
	suffixes := []string{"KiB", "MiB", "GiB", "TiB"}
	for i := len(suffixes) - 1; i >= 0; i-- {
		if unit := uint64(1) << (10 * (i + 1)); n >= unit && n%unit == 0 {
			return strconv.FormatUint(n/unit, 10) + suffixes[i]
		}
	}
	return strconv.FormatUint(n, 10)
}

// formatSize shows the exact number, and a short form where there is one.
func formatSize(n uint64) string {
	plain := strconv.FormatUint(n, 10)
	if short := shortSize(n); short != plain {
		return plain + " (" + short + ")"
	}
	return plain
}

// address is host:port to listen on: the host may be empty, the port 0.
func address() valueType[string] {
	return valueType[string]{"host:port", func(s string) (string, error) {
		if _, _, err := splitAddress(s, 0); err != nil {
			return "", err
		}
		return s, nil
	}, same}
}

// peer is host:port of somebody: both must be there. Empty is allowed for advertise
// addresses, where it means "derive it".
func peer(emptyOK bool) valueType[string] {
	return valueType[string]{"host:port", func(s string) (string, error) {
		if s == "" && emptyOK {
			return "", nil
		}
		host, _, err := splitAddress(s, 1)
		if err != nil {
			return "", err
		}
		if isWildcard(host) {
			return "", errors.New("want an address that others can reach, not a wildcard")
		}
		return s, nil
	}, same}
}

func splitAddress(s string, lowPort int) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(s)
	if err == nil {
		port, err = strconv.Atoi(text)
	}
	if err != nil || port < lowPort || port > math.MaxUint16 || strings.ContainsAny(host, " /?#@") {
		return "", 0, errors.New("want host:port, for example 10.0.0.1:8080")
	}
	return host, port, nil
}

// gossipKey is one base64 key. Its format never shows the key.
func gossipKey() valueType[[]byte] {
	return valueType[[]byte]{"base64", func(s string) ([]byte, error) {
		key, err := base64.StdEncoding.DecodeString(s)
		if err != nil || len(key) != 16 && len(key) != 24 && len(key) != 32 {
			return nil, errors.New("want base64 of 16, 24 or 32 bytes; make one with: head -c 32 /dev/urandom | base64")
		}
		return key, nil
	}, func([]byte) string { return "(redacted)" }}
}
