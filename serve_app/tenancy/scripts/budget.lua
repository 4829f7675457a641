-- Budgets: tokens and money that a key or tenant may use in a calendar day and in a calendar month, UTC.
-- Spent, in the meter record: dno dsp dmo (the day, its tokens and its micro-units so far), mno msp mmo
-- (the month). Counted with or without a budget, so that one set later knows what came before. A
-- request counts where it was admitted: settled on a later day it changes nothing there.

local TODAY = divide_down(now, 86400000000)

-- Months since March of the year 0, from days since 1970-01-01.
local function month_of(day)
  local shifted = day + 719468
  local era = math.floor(shifted / 146097)
  local of_era = shifted - era * 146097
  local year = math.floor(
    (of_era - math.floor(of_era / 1460) + math.floor(of_era / 36524) - math.floor(of_era / 146096))
    / 365)
  local of_year = of_era - (365 * year + math.floor(year / 4) - math.floor(year / 100))
  return (era * 400 + year) * 12 + math.floor((5 * of_year + 2) / 153)
end

-- Which month it is: that of a day that was counted is known, and needs no calendar.
local function month_by(m) return m.dno == TODAY and m.mno or month_of(TODAY) end

-- Tokens and money of the day, tokens and money of the month, both of now.
local function spent_of(m)
  if m.dno == TODAY then return m.dsp, m.dmo, m.msp, m.mmo end
  if m.mno == month_of(TODAY) then return 0, 0, m.msp, m.mmo end
  return 0, 0, 0, 0
end

local function first_passed(may, m, tokens, money)
  local day, day_money, month, month_money = spent_of(m)
  if may.daytok > 0 and day + tokens > may.daytok then return 'day', 'tokens', may.daytok, day end
  if may.daymoney > 0 and day_money + money > may.daymoney then
    return 'day', 'money', may.daymoney, day_money
  end
  if may.montok > 0 and month + tokens > may.montok then return 'month', 'tokens', may.montok, month end
  if may.monmoney > 0 and month_money + money > may.monmoney then
    return 'month', 'money', may.monmoney, month_money
  end
end

-- The refusal of a cost (tokens, and money in `currency`) that a budget has no room for, or nil.
local function refused_budget(scopes, tokens, money, currency)
  for s = 1, 2 do
    local scope = scopes[s]
    local period, unit, budget, spent = first_passed(scope.may, scope.m, tokens, money)
    if period then
      local cost = unit == 'money' and money or tokens
      if unit == 'money' then unit = currency end
      return add_figures({'quota', period, scope.kind, unit, cost, budget, spent}, scopes)
    end
  end
end

-- Adds tokens and money (negative: a refund) of a request that was admitted on `day`.
local function spend(scope, tokens, money, day)
  local m = scope.m
  local month = month_by(m)
  if day == TODAY then
    if m.dno ~= TODAY then m.dno, m.dsp, m.dmo = TODAY, 0, 0 end
    m.dsp, m.dmo = math.max(0, m.dsp + tokens), math.max(0, m.dmo + money)
  elseif month_of(day) ~= month then
    return
  end
  if m.mno ~= month then m.mno, m.msp, m.mmo = month, 0, 0 end
  m.msp, m.mmo = math.max(0, m.msp + tokens), math.max(0, m.mmo + money)
end
