package fsm

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/settkv/sett/kv"
)

// The entry format. A Raft entry is
//
//	version byte, kind byte, stamp uvarint, body
//
// where stamp is the leader's cluster time in milliseconds (0: no stamp). Numbers
// are unsigned varints unless said otherwise; byte strings are length-prefixed.
const (
	entryVersion = 1

	entryBatch = 1 // body: count, then count length-prefixed commands
	entryChunk = 2 // body: id (8 bytes), sequence number, last byte, data
)

// The kinds of command, the first byte of each. The numbers are part of the format.
const (
	cmdTxn      = 1 // a client's transaction
	cmdLead     = 2 // a new leader: moves the cluster clock
	cmdInit     = 3 // formation: cluster id, name and settings
	cmdSettings = 4 // new cluster settings
	cmdMember   = 5 // a member record
	cmdCompact  = 6 // history below a revision may go
	cmdExpire   = 7 // delete keys that are due
	cmdOnce     = 8 // a client's transaction with an idempotency key
	cmdPin      = 9 // hold history
	cmdUnpin    = 10
	cmdKeyed    = 11 // a command on small state with an idempotency key
	cmdBegin    = 12 // within cmdKeyed: a leader begins an operation that is none of the state machine's
	cmdEnd      = 13 // within cmdKeyed: how it ended
)

// MaxCommandBytes bounds one command, staged or not. It is a constant of the
// format, equal on every node (Invariant 10a).
const MaxCommandBytes = 64 << 20

// maxTouchedKeys and maxTouchedBytes bound what one transaction may change
// (Invariant 10b).
const (
	maxTouchedKeys  = kv.MaxTouchedKeys
	maxTouchedBytes = 64 << 20
)

// MaxExpire is how many keys one expiry transaction deletes at most.
const MaxExpire = 1000

var errMalformed = errors.New("malformed")

// encoder appends the primitive types of the formats to a buffer.
type encoder struct{ b []byte }

func (e *encoder) byte(v byte)      { e.b = append(e.b, v) }
func (e *encoder) uvarint(v uint64) { e.b = binary.AppendUvarint(e.b, v) }
func (e *encoder) varint(v int64)   { e.b = binary.AppendVarint(e.b, v) }
func (e *encoder) bytes(v []byte) {
	e.uvarint(uint64(len(v)))
	e.b = append(e.b, v...)
}
func (e *encoder) string(v string) {
	e.uvarint(uint64(len(v)))
	e.b = append(e.b, v...)
}
func (e *encoder) bool(v bool) {
	if v {
		e.byte(1)
	} else {
		e.byte(0)
	}
}

// decoder reads them back. The first failure sticks: later reads return zero
// values, and err says so.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail() {
	if d.err == nil {
		d.err = errMalformed
	}
	d.b = nil
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.fail()
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

// bytes returns a slice of the input, nil if empty.
func (d *decoder) bytes() []byte {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.fail()
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) string() string { return string(d.bytes()) }

func (d *decoder) bool() bool {
	switch d.byte() {
	case 0:
		return false
	case 1:
		return true
	}
	d.fail()
	return false
}

// count reads a number of elements that take at least least bytes each, so that a
// hostile count cannot make the caller allocate more than the input justifies.
func (d *decoder) count(least int) int {
	n := d.uvarint()
	if n > uint64(len(d.b)/least) {
		d.fail()
		return 0
	}
	return int(n)
}

// end reports the first failure, or bytes left over.
func (d *decoder) end() error {
	if d.err == nil && len(d.b) != 0 {
		return fmt.Errorf("%w: %d bytes left over", errMalformed, len(d.b))
	}
	return d.err
}

// entry is a decoded Raft entry.
type entry struct {
	kind  byte
	stamp uint64

	commands [][]byte // batch

	chunkID   uint64 // chunk
	chunkSeq  uint64
	chunkLast bool
	chunk     []byte
}

func encodeBatch(stamp uint64, cmds [][]byte) []byte {
	size := 16
	for _, c := range cmds {
		size += len(c) + binary.MaxVarintLen32
	}
	e := encoder{b: make([]byte, 0, size)}
	e.byte(entryVersion)
	e.byte(entryBatch)
	e.uvarint(stamp)
	e.uvarint(uint64(len(cmds)))
	for _, c := range cmds {
		e.bytes(c)
	}
	return e.b
}

func encodeChunk(stamp, id uint64, seq int, last bool, part []byte) []byte {
	e := encoder{b: make([]byte, 0, len(part)+32)}
	e.byte(entryVersion)
	e.byte(entryChunk)
	e.uvarint(stamp)
	e.b = binary.BigEndian.AppendUint64(e.b, id)
	e.uvarint(uint64(seq))
	e.bool(last)
	e.bytes(part)
	return e.b
}

func decodeEntry(b []byte) (entry, error) {
	d := decoder{b: b}
	if v := d.byte(); d.err == nil && v != entryVersion {
		return entry{}, fmt.Errorf("entry format version %d: %w", v, kv.ErrUnknownVersion)
	}
	en := entry{kind: d.byte(), stamp: d.uvarint()}
	switch en.kind {
	case entryBatch:
		n := d.count(1)
		en.commands = make([][]byte, 0, n)
		for range n {
			en.commands = append(en.commands, d.bytes())
		}
	case entryChunk:
		if len(d.b) < 8 {
			d.fail()
			break
		}
		en.chunkID = binary.BigEndian.Uint64(d.b)
		d.b = d.b[8:]
		en.chunkSeq = d.uvarint()
		en.chunkLast = d.bool()
		en.chunk = d.bytes()
	default:
		d.fail()
	}
	if err := d.end(); err != nil {
		return entry{}, fmt.Errorf("decode entry: %w", err)
	}
	return en, nil
}

// EncodeTxn makes the command of a client's transaction. born is the cluster time in
// milliseconds at which the leader took it (0: not known); it counts only with an
// idempotency key. It fails with invalid-argument or too-large if the transaction
// could never be applied.
func EncodeTxn(t kv.Txn, born uint64) ([]byte, error) {
	if n := len(t.If) + max(len(t.Then), len(t.Else)); n > maxTouchedKeys {
		return nil, errManyOps(n)
	}
	if err := validateTxn(t); err != nil {
		return nil, err
	}
	size := 64
	for _, ops := range [][]kv.Op{t.Then, t.Else} {
		for i := range ops {
			size += len(ops[i].Key) + len(ops[i].Value) + len(ops[i].ContentType) + len(ops[i].Range.Start) + len(ops[i].Range.End) + 40
		}
	}
	for i := range t.If {
		size += len(t.If[i].Key) + len(t.If[i].Value) + 24
	}
	e := encoder{b: make([]byte, 0, size)}
	if t.Once.Key == "" {
		e.byte(cmdTxn)
	} else {
		e.byte(cmdOnce)
		e.once(t.Once, born)
	}
	e.txn(&t)
	if len(e.b) > MaxCommandBytes {
		return nil, kv.NotApplied(kv.CodeTooLarge, "the transaction takes %d bytes, more than %d; split it", len(e.b), MaxCommandBytes)
	}
	return e.b, nil
}

// relayed checks a command of EncodeTxn and has it born at another time.
func relayed(cmd []byte, born uint64) (kv.Txn, []byte, error) {
	if len(cmd) == 0 {
		return kv.Txn{}, nil, errMalformed
	}
	d := decoder{b: cmd[1:]}
	switch cmd[0] {
	case cmdTxn:
		t, err := decodeTxn(&d)
		return t, cmd, err
	case cmdOnce:
		const hashes = 1 + 2*onceHashBytes
		if d.once(); d.err != nil {
			return kv.Txn{}, nil, errMalformed
		}
		rest := d.b
		t, err := decodeTxn(&d)
		e := encoder{b: append(make([]byte, 0, len(cmd)+8), cmd[:hashes]...)}
		e.uvarint(born)
		return t, append(e.b, rest...), err
	}
	return kv.Txn{}, nil, fmt.Errorf("kind %d: %w", cmd[0], errMalformed)
}

func errManyOps(n int) error {
	return kv.NotApplied(kv.CodeTooLarge, "a transaction may have %d conditions and operations at most, this one has %d; split it", maxTouchedKeys, n)
}

// The flags of an operation.
const (
	opPrevious = 1 << iota
	opReverse
	opKeysOnly
	opExpiresAt // the time to live is the time of the end
	opFlags     = 1<<iota - 1
)

func isRange(k kv.OpKind) bool { return k == kv.OpRange || k == kv.OpDeleteRange }

func (e *encoder) txn(t *kv.Txn) {
	e.uvarint(uint64(len(t.If)))
	for i := range t.If {
		c := &t.If[i]
		e.string(c.Key)
		e.byte(byte(c.Target))
		e.byte(byte(c.Op))
		e.uvarint(c.Number)
		e.bytes(c.Value)
	}
	for _, ops := range [][]kv.Op{t.Then, t.Else} {
		e.uvarint(uint64(len(ops)))
		for i := range ops {
			e.op(&ops[i])
		}
	}
}

func (e *encoder) op(op *kv.Op) {
	e.byte(byte(op.Kind))
	var flags byte
	for _, f := range []struct {
		on  bool
		bit byte
	}{{op.Previous, opPrevious}, {op.Reverse, opReverse}, {op.KeysOnly, opKeysOnly}, {!op.ExpiresAt.IsZero(), opExpiresAt}} {
		if f.on {
			flags |= f.bit
		}
	}
	e.byte(flags)
	if isRange(op.Kind) {
		e.string(op.Range.Start)
		e.string(op.Range.End)
		e.uvarint(uint64(op.Limit))
		return
	}
	e.string(op.Key)
	e.bytes(op.Value)
	e.string(op.ContentType)
	if op.ExpiresAt.IsZero() {
		e.uvarint(uint64(op.TTL / time.Millisecond))
	} else {
		e.uvarint(millis(op.ExpiresAt))
	}
	e.varint(op.By)
}

func validateTxn(t kv.Txn) error {
	for i := range t.If {
		if err := validateCond(&t.If[i]); err != nil {
			return err
		}
	}
	for _, ops := range [][]kv.Op{t.Then, t.Else} {
		for i := range ops {
			if err := validateOp(&ops[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

func badTxn(format string, args ...any) error {
	return kv.NotApplied(kv.CodeInvalidArgument, format, args...)
}

func validateCond(c *kv.Cond) error {
	switch {
	case c.Key == "":
		return badTxn("a condition has an empty key")
	case c.Target < kv.CondModRevision || c.Target > kv.CondValue:
		return badTxn("a condition has an unknown target")
	case c.Op < kv.CmpEqual || c.Op > kv.CmpGreaterEqual:
		return badTxn("a condition has an unknown comparison")
	case (c.Target == kv.CondExists || c.Target == kv.CondValue) && c.Op != kv.CmpEqual:
		return badTxn("existence and values compare for equality only")
	}
	return nil
}

func validateOp(op *kv.Op) error {
	longest := max(len(op.Key), len(op.Range.Start), len(op.Range.End))
	switch {
	case op.Kind < kv.OpPut || op.Kind > kv.OpDeleteRange:
		return badTxn("an operation has an unknown kind")
	case op.Key == "" && !isRange(op.Kind):
		return badTxn("an operation has an empty key")
	case longest > maxKeyBytes:
		return kv.NotApplied(kv.CodeTooLarge, "a key of %d bytes is longer than %d", longest, maxKeyBytes)
	case op.TTL < 0 || op.TTL > maxTTL:
		return badTxn("a ttl is out of range")
	case !op.ExpiresAt.IsZero() && (op.Kind != kv.OpPut || op.TTL != 0):
		return badTxn("the time of the end is for a put without a ttl")
	case !op.ExpiresAt.IsZero() && (millis(op.ExpiresAt) < 1 || millis(op.ExpiresAt) > maxExpiresAt):
		return badTxn("the time of the end is out of range")
	case op.Kind == kv.OpTouch && op.TTL == 0:
		return badTxn("touch needs a ttl")
	case len(op.ContentType) > maxContentTypeBytes:
		return badTxn("a content type is longer than %d bytes", maxContentTypeBytes)
	case op.Kind == kv.OpRange && (op.Limit < 1 || op.Limit > kv.MaxRangeLimit):
		return badTxn("the limit of a range is 1 to %d", kv.MaxRangeLimit)
	case op.Kind == kv.OpDeleteRange && (op.Limit < 0 || op.Limit > maxTouchedKeys):
		return badTxn("the limit of a delete is at most %d", maxTouchedKeys)
	}
	return nil
}

func decodeTxn(d *decoder) (kv.Txn, error) {
	var t kv.Txn
	n := d.count(5)
	for range n {
		t.If = append(t.If, kv.Cond{
			Key: d.string(), Target: kv.CondTarget(d.byte()), Op: kv.CondOp(d.byte()),
			Number: d.uvarint(), Value: d.bytes(),
		})
	}
	for _, ops := range []*[]kv.Op{&t.Then, &t.Else} {
		n := d.count(5)
		*ops = make([]kv.Op, 0, n)
		for range n {
			*ops = append(*ops, d.op())
		}
	}
	if err := d.end(); err != nil {
		return kv.Txn{}, fmt.Errorf("decode transaction: %w", err)
	}
	if err := validateTxn(t); err != nil {
		return kv.Txn{}, fmt.Errorf("decode transaction: %w", err)
	}
	return t, nil
}

func (d *decoder) op() kv.Op {
	op := kv.Op{Kind: kv.OpKind(d.byte())}
	flags := d.byte()
	if flags&^opFlags != 0 {
		d.fail()
	}
	op.Previous, op.Reverse, op.KeysOnly = flags&opPrevious != 0, flags&opReverse != 0, flags&opKeysOnly != 0
	if isRange(op.Kind) {
		op.Range = kv.Range{Start: d.string(), End: d.string()}
		limit := d.uvarint()
		if limit > maxTouchedKeys {
			d.fail()
		}
		op.Limit = int(limit)
		return op
	}
	op.Key, op.Value, op.ContentType = d.string(), d.bytes(), d.string()
	ttl := d.uvarint()
	switch {
	case flags&opExpiresAt != 0:
		if ttl < 1 || ttl > maxExpiresAt {
			d.fail()
		}
		op.ExpiresAt = timeOf(ttl)
	case ttl > uint64(maxTTL/time.Millisecond):
		d.fail()
	default:
		op.TTL = time.Duration(ttl) * time.Millisecond
	}
	op.By = d.varint()
	return op
}

// initCommand is the body of cmdInit: what formation decides.
type initCommand struct {
	ClusterID   string             `json:"cluster_id"`
	ClusterName string             `json:"cluster_name"`
	Settings    kv.ClusterSettings `json:"settings"`
}

// leadCommand is the body of cmdLead.
type leadCommand struct {
	ServerID string `json:"server_id"`
	// Clock is where the cluster clock should stand at least, in milliseconds: the
	// median of a voter majority's wall clocks, as the leader gathered them.
	Clock uint64 `json:"clock"`
}

func encodeJSONCommand(kind byte, v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		// Only our own plain structs come here.
		panic(fmt.Sprintf("encode command %d: %v", kind, err))
	}
	return append([]byte{kind}, b...)
}

// EncodeInit makes the command that gives a new cluster its identity and settings.
// Only the first one ever applied counts.
func EncodeInit(clusterID, clusterName string, s kv.ClusterSettings) []byte {
	return encodeJSONCommand(cmdInit, initCommand{clusterID, clusterName, s})
}

// EncodeLead makes a new leader's first command. clock is the median of a voter
// majority's wall clocks; the cluster clock moves there, forwards only.
func EncodeLead(serverID string, clock time.Time) []byte {
	return encodeJSONCommand(cmdLead, leadCommand{serverID, millis(clock)})
}

// EncodeSettings makes the command that replaces the cluster settings.
func EncodeSettings(s kv.ClusterSettings) []byte { return encodeJSONCommand(cmdSettings, s) }

// EncodeMember makes the command that stores a member record.
func EncodeMember(r kv.MemberRecord) []byte { return encodeJSONCommand(cmdMember, r) }

// EncodeCompact makes the command that lets history below rev go. rev must be a
// revision that the proposing leader has applied: what the command decides may depend
// on the small state only, which is rebuilt from the log at each start.
func EncodeCompact(rev kv.Revision) []byte {
	e := encoder{b: []byte{cmdCompact}}
	e.uvarint(uint64(rev))
	return e.b
}

// EncodePin makes the command that holds history from rev on for ttl. As in
// EncodeCompact, rev must be one that the proposing leader has applied.
func EncodePin(rev kv.Revision, ttl time.Duration) []byte {
	e := encoder{b: []byte{cmdPin}}
	e.uvarint(uint64(rev))
	e.uvarint(uint64(max(0, ttl) / time.Millisecond))
	return e.b
}

// EncodeUnpin makes the command that takes a pin away.
func EncodeUnpin(id string) []byte { return append([]byte{cmdUnpin}, id...) }

// EncodeExpire makes the command that deletes keys that are due by the cluster clock,
// oldest first, at most limit of them (1 to MaxExpire).
func EncodeExpire(limit int) []byte {
	e := encoder{b: []byte{cmdExpire}}
	e.uvarint(uint64(limit))
	return e.b
}

func millis(t time.Time) uint64 {
	ms := t.UnixMilli()
	if ms < 0 {
		return 0
	}
	return uint64(ms)
}

// timeOf turns milliseconds of cluster time into a time; 0 is the zero time.
func timeOf(ms uint64) time.Time {
	if ms == 0 || ms > math.MaxInt64 {
		return time.Time{}
	}
	return time.UnixMilli(int64(ms)).UTC()
}
