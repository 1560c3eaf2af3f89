package kv

// Range is an interval of keys in their bytewise order: from Start (inclusive; empty:
// the first key) to End (exclusive; empty: beyond the last key).
type Range struct{ Start, End string }

// PrefixRange returns the range of all keys that begin with prefix.
func PrefixRange(prefix string) Range { return Range{Start: prefix, End: PrefixEnd(prefix)} }

// PrefixEnd returns the first key behind all that begin with prefix; empty if there is
// none, because prefix is empty or all 0xFF.
func PrefixEnd(prefix string) string {
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] != 0xFF {
			return prefix[:i] + string([]byte{prefix[i] + 1})
		}
	}
	return ""
}

// Contains reports whether key lies in r.
func (r Range) Contains(key string) bool {
	return key >= r.Start && (r.End == "" || key < r.End)
}

// Empty reports whether no key can lie in r.
func (r Range) Empty() bool { return r.End != "" && r.Start >= r.End }

// Prefix returns the prefix that r is the range of; ok is false if it is of none.
func (r Range) Prefix() (prefix string, ok bool) { return r.Start, PrefixEnd(r.Start) == r.End }

// Scan says what a read of a range returns.
type Scan struct {
	Range   Range
	Reverse bool
	// KeysOnly leaves the values out: Item.Value is nil then.
	KeysOnly bool
	// Delimiter, if not empty, rolls keys up: of all keys that have it after their first
	// len(Prefix) bytes only what goes up to its first occurrence is returned, once.
	Delimiter string
	// Prefix is what the names that are rolled up begin with.
	Prefix string
}

// ScanEntry is one result of a scan: an item, or the common prefix of keys that were
// rolled up.
type ScanEntry struct {
	Item Item
	// CommonPrefix is not empty if this is one; Item is zero then.
	CommonPrefix string
}

// Rest narrows s to what comes after e, which is the last entry of s so far. ok is
// false if nothing can.
func (s Scan) Rest(e ScanEntry) (rest Scan, ok bool) {
	rest = s
	switch {
	case s.Reverse && e.CommonPrefix != "":
		rest.Range.End = e.CommonPrefix
	case s.Reverse:
		rest.Range.End = e.Item.Key
	case e.CommonPrefix != "":
		rest.Range.Start = PrefixEnd(e.CommonPrefix)
		if rest.Range.Start == "" {
			return rest, false
		}
	default:
		rest.Range.Start = e.Item.Key + "\x00"
	}
	return rest, !rest.Range.Empty()
}
