package httpapi

import (
	"encoding/base64"
	"math/bits"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/settkv/sett/kv"
)

// The JSON form of a key is written by hand: streams and pages consist of it, and it
// decides how fast they are. Everything here appends and allocates nothing else.

// appendItem appends the JSON form of it, without its value if bare.
func appendItem(dst []byte, it *kv.Item, bare bool) []byte {
	dst = append(dst, '{')
	dst = appendKey(dst, it.Key)
	if !bare {
		dst = append(dst, ',')
		dst = appendValue(dst, it.Value)
	}
	return append(appendItemRest(dst, it), '}')
}

// appendItemRest appends the members of an item's form behind its value.
func appendItemRest(dst []byte, it *kv.Item) []byte {
	dst = append(dst, `,"create_revision":`...)
	dst = strconv.AppendUint(dst, uint64(it.CreateRevision), 10)
	dst = append(dst, `,"mod_revision":`...)
	dst = strconv.AppendUint(dst, uint64(it.ModRevision), 10)
	dst = append(dst, `,"version":`...)
	dst = strconv.AppendUint(dst, it.Version, 10)
	if it.ContentType != "" {
		dst = append(dst, ',')
		dst = appendNamed(dst, "content_type", it.ContentType, true) // ASCII, or it was refused
	}
	if !it.ExpiresAt.IsZero() {
		dst = append(dst, `,"expires_at":"`...)
		dst = appendTime(dst, it.ExpiresAt)
		dst = append(dst, '"')
	}
	return dst
}

// appendItemOrNull appends the JSON form of it, or null.
func appendItemOrNull(dst []byte, it *kv.Item) []byte {
	if it == nil {
		return append(dst, "null"...)
	}
	return appendItem(dst, it, false)
}

// bytesOrText is what keys and values are.
type bytesOrText interface{ string | []byte }

// appendKey appends the member that names a key.
func appendKey(dst []byte, key string) []byte {
	return appendNamed(dst, "key", key, utf8.ValidString(key))
}

// appendValue appends the member that has a value.
func appendValue(dst, value []byte) []byte {
	return appendNamed(dst, "value", value, utf8.Valid(value))
}

// appendNamed appends a member of that name: text if v is text, which is UTF-8, else
// base64 under the name with _base64 behind it.
func appendNamed[T bytesOrText](dst []byte, name string, v T, text bool) []byte {
	dst = append(dst, '"')
	dst = append(dst, name...)
	if text {
		dst = append(dst, `":"`...)
		dst = appendEscaped(dst, v)
	} else {
		dst = append(dst, `_base64":"`...)
		dst = appendBase64(dst, v)
	}
	return append(dst, '"')
}

func appendBase64[T bytesOrText](dst []byte, v T) []byte {
	const piece = 3 << 10
	var buf [piece]byte
	for len(v) > 0 {
		n := copy(buf[:], v)
		dst = base64.StdEncoding.AppendEncode(dst, buf[:n])
		v = v[n:]
	}
	return dst
}

// appendEscaped appends v, which is UTF-8, as the inside of a JSON string.
func appendEscaped[T bytesOrText](dst []byte, v T) []byte {
	for {
		n := plain(v)
		dst = append(dst, v[:n]...)
		if n == len(v) {
			return dst
		}
		dst = appendEscape(dst, v[n])
		v = v[n+1:]
	}
}

func appendEscape(dst []byte, c byte) []byte {
	switch c {
	case '"', '\\':
		return append(dst, '\\', c)
	case '\n':
		return append(dst, '\\', 'n')
	case '\r':
		return append(dst, '\\', 'r')
	case '\t':
		return append(dst, '\\', 't')
	}
	const hex = "0123456789abcdef"
	return append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
}

// plain returns how many of v's first bytes a JSON string holds as they are.
func plain[T bytesOrText](v T) int {
	const (
		ones  = 0x0101010101010101
		highs = 0x8080808080808080
	)
	i := 0
	for ; i+8 <= len(v); i += 8 {
		w := uint64(v[i]) | uint64(v[i+1])<<8 | uint64(v[i+2])<<16 | uint64(v[i+3])<<24 |
			uint64(v[i+4])<<32 | uint64(v[i+5])<<40 | uint64(v[i+6])<<48 | uint64(v[i+7])<<56
		quote, slash := w^(ones*'"'), w^(ones*'\\')
		// Each term has the high bit of the lowest byte that is below the space, a quote or a
		// backslash, and no bit below it. Bits above it may be wrong.
		found := (w-ones*' ')&^w | (quote-ones)&^quote | (slash-ones)&^slash
		if found &= highs; found != 0 {
			return i + bits.TrailingZeros64(found)/8
		}
	}
	for ; i < len(v); i++ {
		if c := v[i]; c < ' ' || c == '"' || c == '\\' {
			break
		}
	}
	return i
}

// timeLayout is RFC 3339 with up to millisecond digits.
const timeLayout = "2006-01-02T15:04:05.999Z07:00"

// timeText is a time in UTC, empty for the zero time.
func timeText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(timeLayout)
}

func appendTime(dst []byte, t time.Time) []byte { return t.UTC().AppendFormat(dst, timeLayout) }
