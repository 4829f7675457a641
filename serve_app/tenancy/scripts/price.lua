-- Prices: what a request costs, in micro-units (millionths of the currency's unit).
-- A price is `<currency> <input> <cached input> <output>`, in micro-units for a million tokens, each at
-- most 10^9; '' is free. Whole millions of tokens and the rest are multiplied apart, so that nothing
-- passes 2^53; the sum is rounded once, half up.

local MILLION = 1000000

-- Micro-units of whole millions of tokens, and millionths of a micro-unit of the rest.
local function parts_of(tokens, per_million)
  local millions = divide_down(tokens, MILLION)
  return millions * per_million, (tokens - millions * MILLION) * per_million
end

-- The price that was read last, and what it says: a request's is asked for again and again.
local priced, currency, fresh, kept, made

-- The cost and its currency. Cached tokens are among the input.
local function cost_of(price, input, cached, output)
  if price ~= priced then
    priced, currency, fresh, kept, made = price, string.match(price, '^(%u+) (%d+) (%d+) (%d+)$')
    fresh, kept, made = tonumber(fresh), tonumber(kept), tonumber(made)
  end
  if not currency then return 0, '' end
  local fresh_whole, fresh_rest = parts_of(math.max(0, input - cached), fresh)
  local kept_whole, kept_rest = parts_of(cached, kept)
  local made_whole, made_rest = parts_of(output, made)
  local rest = fresh_rest + kept_rest + made_rest
  return fresh_whole + kept_whole + made_whole + divide_down(rest + MILLION / 2, MILLION), currency
end
